"""`tlcli.Client`: the answers of `tlcli.load` over the wire, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tlcli
from tests.helpers.service.toy_model import SIZE
from tlcli.contract.errors import ImageError, NotFoundError, RequestError, ServerError
from tlcli.service import ServerSettings, in_background


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[tlcli.Client]:
    with in_background(ServerSettings(models=models, port=0, device="cpu")) as port, tlcli.Client(f"localhost:{port}") as client:
        client.wait_until_ready(30)
        yield client


@pytest.fixture(scope="module")
def model(models: Path) -> tlcli.Model:
    return tlcli.load(models, device="cpu")


def check_equal(remote: tlcli.Answer, local: tlcli.Answer) -> None:
    assert type(remote) is type(local)
    assert (remote.label, remote.score, remote.source, remote.explained) == (local.label, local.score, local.source, local.explained)
    assert remote.labels == local.labels
    assert remote.top(7) == local.top(7)
    np.testing.assert_array_equal(remote.scores, local.scores)
    np.testing.assert_array_equal(remote.logits, local.logits)
    assert remote.maps.keys() == local.maps.keys()
    for method in local.maps:
        np.testing.assert_array_equal(remote.maps[method], local.maps[method])
        assert remote.draw(method).tobytes() == local.draw(method).tobytes()
    assert repr(remote) == repr(local)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cam": "gradcam"},
        {"cam": ["gradcam", "cam"], "classes": ["green", -1, 2, -3]},
        {"cam": "all", "max_channels": 3},
        {"cam": "gradcam", "softmax": True, "classes": "red"},
    ],
)
def test_the_numbers_are_those_of_the_loaded_model(
    client: tlcli.Client, model: tlcli.Model, images: Path, options: dict[str, object]
) -> None:
    check_equal(client.predict(images / "a.png", **options), model.predict(images / "a.png", **options))  # type: ignore[call-overload]


def test_many_images_in_every_form_are_answered_in_order(client: tlcli.Client, model: tlcli.Model, images: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    forms = [images / "a.png", (images / "b.jpg").read_bytes(), pixels, pixels[..., 0]]
    for remote, image in zip(client.predict(forms, cam="gradcam"), forms, strict=True):
        check_equal(remote, model.predict(image, cam="gradcam"))  # type: ignore[call-overload]
    many = [pixels[:height] for height in range(2, SIZE)] * 2  # more than are sent at a time
    for remote, local in zip(client.predict(many), model.predict(many), strict=True):
        assert remote.class_id == local.class_id
        np.testing.assert_allclose(remote.scores, local.scores, rtol=1e-6)
    assert len(client.predict(images)) == 2


def test_an_unreadable_image_is_raised_or_skipped(client: tlcli.Client, images: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png: .*no image"):
        client.predict(tmp_path / "broken.png")
    several = [images / "a.png", tmp_path / "broken.png", tmp_path / "none.png", images / "b.jpg"]
    with pytest.raises(ImageError, match=r"broken\.png"):
        client.predict(several)
    with pytest.warns(UserWarning, match="left out: "):
        answers = client.predict(several, on_error="skip")
    assert [Path(answer.source).name for answer in answers] == ["a.png", "b.jpg"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cam": "lime"}, RequestError, "'lime'"),
        ({"cam": "gradcam", "classes": "purple"}, RequestError, "classes 'purple': no such class"),
        ({"cam": "gradcam", "classes": 99}, RequestError, "99"),
        ({"classes": "red"}, RequestError, "no map is requested"),
        (
            {"cam": "gradcam", "max_channels": 3},
            RequestError,
            "max_channels 3: only scorecam and faster_scorecam take it; requested: gradcam",
        ),
        ({"model": "nobody"}, NotFoundError, "nobody"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    client: tlcli.Client, images: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.predict(images / "a.png", **options)  # type: ignore[call-overload]


def test_a_server_that_is_not_there_is_one_line(images: Path) -> None:
    with tlcli.Client("127.0.0.1:1", retries=0) as nobody, pytest.raises(ServerError, match=r"127\.0\.0\.1:1"):
        nobody.predict(images / "a.png", timeout_s=2)


def test_it_lists_the_models_and_is_shown_by_its_address(client: tlcli.Client) -> None:
    assert [status.name for status in client.models()] == ["toy"]
    assert repr(client) == f"Client({client.address!r})"
