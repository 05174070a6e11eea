"""Requests over HTTP, of the Open Inference Protocol and our own: the answers are the model's."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import BLUE, GREEN, RED, encode, scene
from tests.helpers.service.toy_model import GRID, LABELS, METHODS, SIZE, ToyAnswer, ToyModel
from tests.service.conftest import FIRST, SECOND
from tests.service.inference.test_classifier import TOLERANCE, network_input
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.service import ServerSettings

IMAGES = np.random.default_rng(7).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
ENCODED = [encode(scene(color, (30, 20, 90, 70)), kind) for color, kind in ((RED, "JPEG"), (GREEN, "PNG"), (BLUE, "WEBP"))]
INFER = "/v2/models/toy/versions/1/infer"
AS_BASE64 = {"content_type": "base64"}


@pytest.fixture
def http(http_port: int) -> Iterator[Asking]:
    with Asking(http_port) as asking:
        yield asking


@pytest.fixture
def triton_client(http_port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{http_port}") as client:
        yield client


def given(name: str, values: np.ndarray, flat: bool = False, **parameters: object) -> dict[str, Any]:
    """Create an input in JSON."""
    datatype = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "object": "BYTES"}[values.dtype.name]
    data = values.ravel().tolist() if flat else values.tolist()
    return {"name": name, "datatype": datatype, "shape": [*values.shape], "data": data, "parameters": parameters}


def encoded(images: list[bytes]) -> dict[str, Any]:
    return given("encoded", np.array([base64.b64encode(one).decode() for one in images], dtype=object), **AS_BASE64)


def tensors(answer: Any) -> dict[str, np.ndarray]:
    """Return the outputs of an answer in JSON."""
    kinds = {"FP32": np.float32, "INT64": np.int64}
    return {one["name"]: np.array(one["data"], kinds[one["datatype"]]).reshape(one["shape"]) for one in answer["outputs"]}


def twins(images: np.ndarray = IMAGES, model: ToyModel = FIRST, softmax: bool = False) -> list[ToyAnswer]:
    return [model.answer(image, softmax) for image in images]


def best(answers: list[ToyAnswer]) -> list[int]:
    return [int(one.logits.argmax()) for one in answers]


def same(found: Any, expected: object) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("path", "version", "model"),
    [(INFER, "1", FIRST), ("/v2/models/toy/versions/2/infer", "2", SECOND), ("/v2/models/toy/infer", "2", SECOND)],
)
def test_answers_to_json_are_the_models(http: Asking, path: str, version: str, model: ToyModel, flat: bool) -> None:
    answer = http.post(path, {"id": "mine", "inputs": [given("images", IMAGES, flat)]})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    found = answer.json
    assert (found["model_name"], found["model_version"], found["id"]) == ("toy", version, "mine")
    assert [(one["name"], one["datatype"], one["shape"]) for one in found["outputs"]] == [
        ("scores", "FP32", [3, len(LABELS)]),
        ("logits", "FP32", [3, len(LABELS)]),
    ]
    same(tensors(found)["scores"], [one.scores for one in twins(model=model)])
    same(tensors(found)["logits"], [one.logits for one in twins(model=model)])


def test_classes_maps_and_the_probability_in_json(http: Asking) -> None:
    inputs = [given("images", IMAGES), given("targets", np.array([[2, -1]])), given("softmax", np.array([True]))]
    asked = [{"name": name} for name in ("gradcam", "classes", "cam")]
    found = tensors(http.post(INFER, {"inputs": inputs, "outputs": asked}).json)
    assert [*found] == ["gradcam", "classes", "cam"]
    answers = twins(softmax=True)
    classes = [[2, one] for one in best(answers)]
    assert found["classes"].tolist() == classes
    for method in ("gradcam", "cam"):
        same(found[method], [getattr(one, method)[row] for one, row in zip(answers, classes, strict=True)])


def test_images_in_base64(http: Asking) -> None:
    found = tensors(http.post(INFER, {"inputs": [encoded(ENCODED)]}).json)
    same(found["scores"], [FIRST.answer(network_input(one)).scores for one in ENCODED])


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body(http: Asking, encoding: str, pack: Any) -> None:
    body = json.dumps({"inputs": [given("images", IMAGES)]}).encode()
    found = tensors(http.post(INFER, pack(body), Content_Encoding=encoding).json)
    same(found["scores"], [one.scores for one in twins()])


def test_some_outputs_as_bytes_and_others_as_json(http: Asking) -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "images", "datatype": "UINT8", "shape": [3, SIZE, SIZE, 3], "parameters": {"binary_data_size": IMAGES.nbytes}},
                given("targets", np.array([4])),
            ],
            "outputs": [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "cam"}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    answer = http.post(INFER, head + IMAGES.tobytes(), Inference_Header_Content_Length=str(len(head)))
    length = int(answer.headers["Inference-Header-Content-Length"])
    scores, cam = json.loads(answer.body[:length])["outputs"]
    assert cam == {"name": "cam", "datatype": "FP32", "shape": [3, 1, GRID, GRID], "parameters": {"binary_data_size": 3 * GRID * GRID * 4}}
    same(np.array(scores["data"]).reshape(3, -1), [one.scores for one in twins()])
    same(np.frombuffer(answer.body[length:], "<f4").reshape(cam["shape"]), [one.cam[4:5] for one in twins()])


def triton_inputs(binary: bool, **values: np.ndarray) -> list[triton.InferInput]:
    inputs = []
    for name, array in values.items():
        datatype = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "object": "BYTES"}[array.dtype.name]
        inputs.append(triton.InferInput(name, [*array.shape], datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritons_client(triton_client: triton.InferenceServerClient, binary_in: bool, binary_out: bool, compression: str | None) -> None:
    result = triton_client.infer(
        "toy",
        triton_inputs(binary_in, images=IMAGES, targets=np.array([[0, -1]]), softmax=np.array([False])),
        model_version="1",
        outputs=[triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "classes", "gradcam")],
        request_id="mine",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    answers = twins()
    classes = [[0, one] for one in best(answers)]
    assert result.get_response()["id"] == "mine"
    same(result.as_numpy("scores"), [one.scores for one in answers])
    assert result.as_numpy("classes").tolist() == classes
    same(result.as_numpy("gradcam"), [one.gradcam[row] for one, row in zip(answers, classes, strict=True)])


def test_tritons_client_sends_images_and_requests_every_map(triton_client: triton.InferenceServerClient, many_models: Path) -> None:
    result = triton_client.infer("toy", triton_inputs(True, encoded=np.array(ENCODED, dtype=object)), model_version="1")
    same(result.as_numpy("scores"), [FIRST.answer(network_input(one)).scores for one in ENCODED])
    targets = np.array([[0, -1], [2, -2], [5, 1]])
    result = triton_client.infer(
        "toy",
        triton_inputs(True, images=IMAGES, targets=targets, max_channels=np.array([2])),
        model_version="1",
        outputs=[triton.InferRequestedOutput(name) for name in METHODS],
    )
    expected = explain(Model.open(many_models / "toy/1/model.onnx", "cpu"), IMAGES, targets, METHODS, max_channels=2)
    for method in METHODS:
        same(result.as_numpy(method), expected.maps[method])


def test_tritons_client_lists_models(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    asked = [("toy", ""), ("toy", "1"), ("toy", "7"), ("damaged", ""), ("damaged", "10"), ("broken", ""), ("nosuch", "")]
    ready = [key for key in asked if triton_client.is_model_ready(*key)]
    assert ready == [("toy", ""), ("toy", "1"), ("damaged", "")]
    assert triton_client.get_server_metadata() == {
        "name": "tlcli",
        "version": metadata.version("tlcli"),
        "extensions": ["model_repository", "binary_tensor_data"],
    }
    index = triton_client.get_model_repository_index()
    assert {(one["name"], one["version"]): one["state"] for one in index} == {
        ("broken", "1"): "UNAVAILABLE",
        ("damaged", "9"): "READY",
        ("damaged", "10"): "UNAVAILABLE",
        ("faulty", "1"): "READY",
        ("toy", "1"): "READY",
        ("toy", "2"): "READY",
    }
    assert all(("ONNX Runtime cannot load it" in one["reason"]) == (one["state"] == "UNAVAILABLE") for one in index)


def test_metadata_describe_inputs_and_outputs(http: Asking) -> None:
    found = http.get("/v2/models/toy").json
    assert (found["name"], found["platform"], found["versions"]) == ("toy", "onnxruntime_onnx", ["1", "2"])
    assert [(one["name"], one["datatype"], one["shape"]) for one in found["inputs"]] == [
        ("images", "UINT8", [-1, SIZE, SIZE, 3]),
        ("encoded", "BYTES", [-1]),
        ("targets", "INT64", [-1, -1]),
        ("softmax", "BOOL", [1]),
        ("max_channels", "INT64", [1]),
    ]
    assert [one["name"] for one in found["outputs"]] == ["scores", "logits", "classes", *METHODS]
    assert found["properties"]["labels"] == [*LABELS]
    assert http.get("/v2/models/toy/versions/2").json == found


def test_the_index_lists_only_ready_models_on_request(http: Asking) -> None:
    found = http.post("/v2/repository/index", {"ready": True}).json
    assert [(one["name"], one["version"]) for one in found] == [("damaged", "9"), ("faulty", "1"), ("toy", "1"), ("toy", "2")]
    assert len(http.post("/v2/repository/index").json) == 6


def test_models_are_loaded_and_unloaded_with_explicit_control(tmp_path: Path) -> None:
    FIRST.save(tmp_path / "toy/1/model.onnx", "toy")
    settings = ServerSettings(models=tmp_path, port=0, http_port=0, model_control="explicit")
    with http_in_background(settings) as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        SECOND.save(tmp_path / "toy/2/model.onnx", "toy")
        assert not client.is_model_ready("toy", "2")
        client.load_model("toy")
        assert client.is_model_ready("toy", "2")
        client.unload_model("toy")
        assert not client.is_model_ready("toy")
        with pytest.raises(triton.InferenceServerException, match="no model 'nosuch' on this server; it has: toy"):
            client.load_model("nosuch")


def test_an_image_is_classified(http: Asking) -> None:
    found = http.post("/v1/classify?model=toy&version=1&top_k=3&request_id=mine", ENCODED[0]).json
    expected = FIRST.answer(network_input(ENCODED[0]))
    order = np.argsort(-expected.logits)[:3]
    assert (found["model"], found["version"], found["request_id"]) == ("toy", "1", "mine")
    assert [one["class_id"] for one in found["predictions"]] == order.tolist()
    assert [one["label"] for one in found["predictions"]] == [LABELS[class_id] for class_id in order]
    assert [one["rank"] for one in found["predictions"]] == [1, 2, 3]
    same([one["score"] for one in found["predictions"]], expected.scores[order])
    same([one["logit"] for one in found["predictions"]], expected.logits[order])
    assert not any("map" in one for one in found["predictions"])
    assert found["timings"]["decode_time_ns"] > 0


def test_maps_as_values(http: Asking) -> None:
    found = http.post("/v1/classify?model=toy&version=1&cam=gradcam&classes=6,-1&softmax=true&top_k=1", ENCODED[0]).json
    expected = FIRST.answer(network_input(ENCODED[0]), softmax=True)
    assert {one["class_id"] for one in found["predictions"]} == {6, int(expected.logits.argmax())}
    for one in found["predictions"]:
        assert (one["map"]["cam"], one["map"]["height"], one["map"]["width"]) == ("gradcam", GRID, GRID)
        same(one["map"]["values"], expected.gradcam[one["class_id"]])
        left, top, right, bottom = one["map"]["box"]
        assert 0 <= left < right <= 256
        assert 0 <= top < bottom <= 192


@pytest.mark.parametrize(("classes", "expected"), [("grey", {6}), ("grey,-1", {6, -1}), ("red,5,blue", {0, 5, 2})])
def test_classes_are_labels_ids_or_ranks(http: Asking, classes: str, expected: set[int]) -> None:
    ranked = int(FIRST.answer(network_input(ENCODED[0])).logits.argmax())
    found = http.post(f"/v1/classify?model=toy&version=1&cam=cam&classes={quote(classes)}", ENCODED[0]).json
    assert {one["class_id"] for one in found["predictions"] if "map" in one} == {ranked if number == -1 else number for number in expected}


def test_maps_as_pngs(http: Asking) -> None:
    asked = "/v1/classify?model=toy&version=1&cam=cam"
    (drawn,) = [one["map"] for one in http.post(f"{asked}&format=overlay", ENCODED[0]).json["predictions"] if "map" in one]
    assert "values" not in drawn
    answer = http.post(asked, ENCODED[0], Accept="image/png")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.body == base64.b64decode(drawn["png"])
    assert Image.open(io.BytesIO(answer.body)).size == (256, 192)
    heat = http.post(f"{asked}&format=heat_map&classes=2", ENCODED[0], Accept="image/png;q=1, image/webp")
    assert Image.open(io.BytesIO(heat.body)).size == (SIZE, SIZE)
    assert http.post(asked, ENCODED[0], Accept="image/png, application/json").json["predictions"]


def test_nan_is_null_in_json_and_unchanged_in_binary_data(tmp_path: Path) -> None:
    whole = ToyModel.make(seed=1)
    bias = whole.bias.copy()
    bias[3] = np.nan
    ToyModel(whole.weight, bias, whole.mix).save(tmp_path / "nan/1/model.onnx", "nan")
    settings = ServerSettings(models=tmp_path, port=0, http_port=0)
    with http_in_background(settings) as port, Asking(port) as http, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        found = http.post("/v2/models/nan/infer", {"inputs": [given("images", IMAGES[:1])], "outputs": [{"name": "logits"}]}).json
        assert [row for row, value in enumerate(found["outputs"][0]["data"]) if value is None] == [3]
        logits = client.infer("nan", triton_inputs(True, images=IMAGES[:1])).as_numpy("logits")
        assert np.isnan(logits[0]).nonzero()[0].tolist() == [3]


def test_the_request_id_header_is_returned(http: Asking) -> None:
    assert http.get("/v2", X_Request_ID="mine").headers["X-Request-ID"] == "mine"
    assert http.post("/v1/classify", b"", X_Request_ID="mine").headers["X-Request-ID"] == "mine"
