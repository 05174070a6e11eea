"""Tests of server addresses, valid and invalid, and of arrays of any size as images."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.service.toy_model import PREPROCESSING, SIZE, ToyModel
from tlcli.contract.errors import RequestError, SettingsError
from tlcli.contract.model.onnx_model import Model
from tlcli.service import AsyncClient, Client, ServerSettings, in_background
from tlcli.service.system.addresses import parse_target


@pytest.mark.parametrize(
    ("target", "port", "expected"),
    [
        ("127.0.0.1", None, ("127.0.0.1", 8001, False)),
        ("models.example", 9000, ("models.example", 9000, False)),
        ("models.example:9000", None, ("models.example", 9000, False)),
        ("models.example:9000", 9000, ("models.example", 9000, False)),
        ("grpc://models.example:9000/", None, ("models.example", 9000, False)),
        ("grpcs://models.example", None, ("models.example", 8001, True)),
        ("[::1]:9000", None, ("::1", 9000, False)),
        ("[::1]", 9000, ("::1", 9000, False)),
        ("::1", 9000, ("::1", 9000, False)),
    ],
)
def test_an_address_is_read_as_people_write_it(target: str, port: int | None, expected: tuple[str, int, bool]) -> None:
    assert parse_target(target, port) == expected


@pytest.mark.parametrize(
    ("target", "port", "message"),
    [
        ("http://127.0.0.1:8000", None, "this is an HTTP address, but the client speaks gRPC"),
        ("https://models.example", None, "this is an HTTP address"),
        ("ftp://x", None, "unknown scheme 'ftp'"),
        ("models.example:", None, "'' is not a port: expected 1 to 65535, such as models.example:8001"),
        ("models.example:grpc", None, "'grpc' is not a port"),
        ("models.example:70000", None, "'70000' is not a port"),
        ("models.example:0", None, "'0' is not a port"),
        ("models.example:9000", 9001, "two different ports"),
        ("", None, "expected a name or an address"),
        (":8001", None, "expected a name or an address"),
        ("a b", None, "expected a name or an address"),
        ("models.example/v2", None, "expected a name or an address"),
        ("me@models.example", None, "expected a name or an address"),
        ("[]:1", None, "expected a name or an address"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(target: str, port: int | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_target(target, port)
    with pytest.raises(SettingsError, match=message):
        Client(target, port)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    ToyModel.make(seed=5).save(folder / "toy/1/model.onnx", "toy")
    return folder


def test_an_array_is_answered_as_the_image_that_it_is(models: Path) -> None:
    """Classify arrays of several sizes, including another shape with as many pixels as the model's input."""
    random = np.random.default_rng(0)
    model = Model.open(models / "toy/1/model.onnx", "cpu")
    arrays = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((SIZE, SIZE), (90, 120), (SIZE // 2, 2 * SIZE), (1, 1))]
    arrays.append(arrays[1][:, ::-1])  # not contiguous
    seen = [arrays[0], *(PREPROCESSING.apply(Image.fromarray(np.ascontiguousarray(array))) for array in arrays[1:])]
    expected = model.run(np.stack(seen)).scores.max(1)
    with in_background(ServerSettings(models=models, port=0)) as port:
        with Client(f"127.0.0.1:{port}") as client:
            alone = [client.classify(array).predictions[0].score for array in arrays]
            streamed = [answer.result().predictions[0].score for answer in client.classify_stream(arrays)]
            with pytest.raises(RequestError, match=r"not uint8 \[0, 5, 3\]"):
                client.classify(np.zeros((0, 5, 3), np.uint8))

        async def ask() -> list[float]:
            async with AsyncClient(f"grpc://127.0.0.1:{port}") as other:
                return [(await other.classify(array)).predictions[0].score for array in arrays]

        asynchronous = asyncio.run(ask())
    for scores in (alone, streamed, asynchronous):
        np.testing.assert_allclose(scores, expected, atol=1e-5)
