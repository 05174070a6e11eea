"""Tests of the asynchronous client: it returns the same answers as the synchronous one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.service.sample_images import encode, scene, slow_image
from tlcli.contract.errors import ImageError, ModelFileError, NotFoundError, RequestError, ServerError
from tlcli.service import AsyncClient, Client

IMAGES = [encode(scene((200, 30 * number, 60), (40, 40, 120, 120), seed=number)) for number in range(6)]


def test_the_same_answers(port: int, client: Client) -> None:
    async def main() -> None:
        async with AsyncClient(port=port) as own:
            assert own.address == client.address
            await own.wait_until_ready(timeout_s=5)
            assert await own.is_ready("toy")
            assert not await own.is_ready("nobody")
            assert await own.list_models() == client.list_models()
            assert await own.get_model("toy", "1") == client.get_model("toy", "1")
            answers = await asyncio.gather(
                *(own.classify(image, model="toy", cam="gradcam", classes=(1, -1), request_id="x") for image in IMAGES)
            )
        for image, answer in zip(IMAGES, answers, strict=True):
            expected = client.classify(image, model="toy", cam="gradcam", classes=(1, -1), request_id="x")
            assert (answer.request_id, answer.version) == ("x", expected.version)
            for one, other in zip(answer.predictions, expected.predictions, strict=True):
                assert (one.label, one.rank) == (other.label, other.rank)
                assert abs(one.logit - other.logit) < 1e-5
                if one.map is not None and one.map.values is not None:
                    assert other.map is not None
                    assert other.map.values is not None
                    np.testing.assert_allclose(one.map.values, other.map.values, atol=1e-5)

    asyncio.run(main())


def test_many_in_their_order_with_the_errors_of_some(port: int, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")

    async def endless() -> AsyncIterator[bytes | Path]:
        for image in IMAGES:
            yield image
        yield tmp_path / "broken.png"
        yield tmp_path / "missing.png"

    async def main() -> None:
        async with AsyncClient(port=port) as own:
            answers = [answer async for answer in own.classify_all(endless(), model="toy", in_flight=3)]
            assert [answer.request_id for answer in answers] == [str(number) for number in range(8)]
            for image, answer in zip(IMAGES, answers[:6], strict=True):
                alone = await own.classify(image, model="toy")
                assert answer.result().predictions[0].label == alone.predictions[0].label
            with pytest.raises(ImageError, match=r"broken\.png"):
                answers[6].result()
            with pytest.raises(NotFoundError, match=r"missing\.png"):
                answers[7].result()

    asyncio.run(main())


def test_errors(port: int) -> None:
    async def main() -> None:
        async with AsyncClient(port=port) as own:
            with pytest.raises(ImageError):
                await own.classify(b"", model="toy")
            with pytest.raises(RequestError, match="need a map method"):
                await own.classify(IMAGES[0], model="toy", classes=(1,))
            with pytest.raises(NotFoundError, match="nobody"):
                await own.classify(IMAGES[0], model="nobody")
            with pytest.raises(ModelFileError):
                await own.get_model("broken")
            with pytest.raises(ServerError, match="in time"):
                await own.classify(slow_image(), model="toy", timeout_s=0.05)
        async with AsyncClient(port=1, retries=0) as nobody:
            with pytest.raises(ServerError, match="no server responds"):
                await nobody.classify(IMAGES[0])
            with pytest.raises(ServerError, match="no server was ready"):
                await nobody.wait_until_ready(timeout_s=0.1)
        began = time.monotonic()
        async with AsyncClient(port=1) as again:
            with pytest.raises(ServerError, match="no server responds"):
                await again.classify(IMAGES[0])
        assert time.monotonic() - began < 5, "asked again, and not for long"

    asyncio.run(main())


def test_classes_may_be_labels(port: int, client: Client) -> None:
    labels = client.get_model("toy").labels
    expected = client.classify(IMAGES[0], model="toy", cam="gradcam", classes=(2,))

    async def main() -> None:
        async with AsyncClient(port=port) as own:
            answer = await own.classify(IMAGES[0], model="toy", cam="gradcam", classes=(labels[2],))
            (streamed,) = [one.result() async for one in own.classify_all([IMAGES[0]], model="toy", cam="gradcam", classes=(labels[2],))]
            for found in (answer, streamed):
                assert [(one.class_id, one.map is None) for one in found.predictions] == [
                    (one.class_id, one.map is None) for one in expected.predictions
                ]
            with pytest.raises(RequestError, match=r"^classes 'nobody': no such class"):
                await own.classify(IMAGES[0], model="toy", cam="gradcam", classes=("nobody",))
            with pytest.raises(TypeError, match=r"^unknown option 'method'"):
                await own.classify(IMAGES[0], method="gradcam")  # type: ignore[call-arg]

    asyncio.run(main())
