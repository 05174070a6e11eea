"""Tests of the synchronous client: errors without a server, invalid arguments, model information."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import LABELS, METHODS
from tlcli.contract.errors import ImageError, NotFoundError, RequestError, ServerError
from tlcli.service import Classification, Client, ServerSettings, in_background

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


def test_no_server(unused_port: int) -> None:
    with Client(port=unused_port) as client:
        with pytest.raises(ServerError, match=rf"^no server responds at 127\.0\.0\.1:{unused_port}: start one with `tlcli") as caught:
            client.classify(IMAGE)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        with pytest.raises(ServerError, match="no server responds"):
            list(client.classify_stream([IMAGE]))
        assert not client.is_ready()
        with pytest.raises(ServerError, match=r"no server was ready at .* within 0\.2 s"):
            client.wait_until_ready(timeout_s=0.2)


def test_a_server_that_is_none_of_ours(unused_port: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    other = grpc.server(ThreadPoolExecutor(1))
    other.add_insecure_port(f"127.0.0.1:{unused_port}")
    other.start()
    with Client(port=unused_port) as client, pytest.raises(ServerError, match="is not a tlcli server"):
        client.list_models()
    other.stop(None)


def test_a_model_is_described(client: Client) -> None:
    info = client.get_model("toy", "1")
    assert (info.model, info.version, info.device, info.labels) == ("toy", "1", "cpu", LABELS)
    assert (info.input_height, info.input_width) == (64, 64)
    assert [(one.method, one.layer, one.height, one.width) for one in info.methods] == [(method, "grid", 8, 8) for method in METHODS]
    assert json.loads(info.description_json)["preprocessing"]["interpolation"] == "bilinear"
    assert client.get_model("toy").version == "2"
    with pytest.raises(NotFoundError, match="no model 'nosuch'"):
        client.get_model("nosuch")


def test_readiness_by_model(client: Client) -> None:
    client.wait_until_ready(timeout_s=30)
    assert [client.is_ready(model) for model in ("", "toy", "damaged", "broken", "nosuch")] == [True, True, True, False, False]


def test_where_one_model_is_served_it_need_not_be_named(one_model: Path) -> None:
    with in_background(ServerSettings(models=one_model, port=0)) as port, Client(port=port) as client:
        answer = client.classify(IMAGE)
        assert (answer.model, answer.version) == ("toy", "1")
        assert client.get_model().model == "toy"


def test_questions_that_make_no_sense(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nosuch\.jpg: No such file"):
        client.classify(tmp_path / "nosuch.jpg")
    with pytest.raises(RequestError, match=r"not float64 \[64, 64, 3\]"):
        client.classify(np.zeros((64, 64, 3)))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"array \[height, width, 3\], not int"):
        client.classify(5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="need a map method"):
        client.classify(IMAGE, classes=(1,))
    for given in ({"softmax": True}, {"max_channels": 3}):
        with pytest.raises(RequestError, match="need a map method"):
            client.classify(IMAGE, **given)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expected raw, heat_map, overlay"):
        client.classify(IMAGE, cam="cam", map_format="svg")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="floating-point"):
        client.classify(Image.new("F", (8, 8)))


def test_an_error_about_a_file_names_it(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(ImageError, match=rf"^{path}: 8 bytes are not an image"):
        client.classify(path, model="toy")


def test_pillow_images_of_every_kind_are_seen_as_their_files_are(client: Client) -> None:
    photo = scene(RED, (30, 20, 90, 70))
    for mode in ("RGB", "L", "P", "CMYK", "RGBA", "1"):
        image = photo.convert(mode)
        data = encode(image, "TIFF")
        assert client.classify(image, model="toy").predictions == client.classify(data, model="toy").predictions, mode


def test_classes_are_labels_ids_or_ranks(client: Client) -> None:
    labels = client.get_model("toy").labels
    by_id = client.classify(IMAGE, model="toy", cam="gradcam", classes=(2, -1))
    for classes in ((labels[2], -1), (labels[2], "-1"), ("2", -1)):
        assert explained(client.classify(IMAGE, model="toy", cam="gradcam", classes=classes)) == explained(by_id)
    assert explained(client.classify(IMAGE, model="toy", cam="gradcam", classes=labels[2])) == [2]
    (streamed,) = client.classify_stream([IMAGE], model="toy", cam="gradcam", classes=(labels[2], -1))
    assert explained(streamed.result()) == explained(by_id)
    with pytest.raises(RequestError, match=r"^classes 'nobody': no such class; expected a label \("):
        client.classify(IMAGE, model="toy", cam="gradcam", classes=("nobody",))


def explained(answer: Classification) -> list[int]:
    return [prediction.class_id for prediction in answer.predictions if prediction.map is not None]


def test_an_unknown_option_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match=r"^unknown option 'method': expected one of model, version, top_k, cam, classes"):
        client.classify(IMAGE, method="gradcam")  # type: ignore[call-arg]
