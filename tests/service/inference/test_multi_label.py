"""Models with several labels per image on a server: every assigned label is returned, each with its own map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import tlcli
from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import LABELS
from tests.service.conftest import FIRST
from tests.service.inference.test_classifier import network_input, the_map
from tlcli.contract.errors import RequestError
from tlcli.contract.model import explain_labels
from tlcli.contract.model.description import METADATA_KEY, Description
from tlcli.service import Client, ServerSettings, in_background

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "PNG")
SCORES = FIRST.answer(network_input(IMAGE)).scores
RANKED = np.argsort(-SCORES).tolist()
ASSIGNED = [RANKED[0], RANKED[1], RANKED[4]]
"""Labels of the image: not those of the best ranks alone, since each class has a threshold of its own."""


def save(path: Path, assigned: list[int]) -> None:
    """Write the toy model with thresholds that assign these labels to the image."""
    FIRST.save(path, "toy")
    model = onnx.load(path)
    description = Description.from_metadata({prop.key: prop.value for prop in model.metadata_props}, str(path))
    thresholds = tuple(float(score) * (0.9 if class_id in assigned else 1.1) for class_id, score in enumerate(SCORES))
    changed = Description.model_validate({**description.model_dump(), "task": "multi-label", "thresholds": thresholds})
    onnx.helper.set_model_props(model, {METADATA_KEY: changed.to_json()})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(folder / "several/1/model.onnx", ASSIGNED)
    save(folder / "none/1/model.onnx", [])
    FIRST.save(folder / "toy/1/model.onnx", "toy")
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=models, port=0)) as port:
        yield port


@pytest.fixture(scope="module")
def grpc(server: int) -> Iterator[Client]:
    with Client(port=server) as client:
        yield client


@pytest.fixture(scope="module")
def http(models: Path) -> Iterator[Asking]:
    with http_in_background(ServerSettings(models=models, port=0, http_port=0)) as port, Asking(port) as asking:
        yield asking


@pytest.mark.parametrize("at_once", [8, 2], ids=["one run", "two runs"])
def test_every_assigned_label_has_its_own_map(grpc: Client, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(explain_labels, "EXPLAINED_AT_ONCE", at_once)
    answer = grpc.classify(IMAGE, model="several", cam="gradcam")
    assert answer.task == "multi-label"
    assert [one.class_id for one in answer.predictions] == ASSIGNED
    assert answer.labels == tuple(LABELS[class_id] for class_id in ASSIGNED)
    assert all(one.assigned and one.score >= one.threshold > 0 for one in answer.predictions)
    asked = grpc.classify(IMAGE, model="several", cam="gradcam", classes=ASSIGNED)
    for class_id in ASSIGNED:
        np.testing.assert_array_equal(the_map(answer, class_id).values, the_map(asked, class_id).values)


def test_an_image_of_none_of_the_classes_has_no_prediction_and_no_map(grpc: Client) -> None:
    for answer in (grpc.classify(IMAGE, model="none"), grpc.classify(IMAGE, model="none", cam="gradcam", map_format="overlay")):
        assert answer.predictions == answer.labels == ()


def test_the_best_classes_can_be_asked_for_and_labels_are_marked(grpc: Client) -> None:
    answer = grpc.classify(IMAGE, model="several", top_k=3)
    assert [one.class_id for one in answer.predictions] == [*RANKED[:3], RANKED[4]]
    assert [one.assigned for one in answer.predictions] == [True, True, False, True]


def test_named_classes_are_explained_alone(grpc: Client) -> None:
    answer = grpc.classify(IMAGE, model="several", cam="gradcam", classes=(RANKED[5],))
    assert [one.class_id for one in answer.predictions if one.map] == [RANKED[5]]


def test_the_model_names_its_task_and_thresholds(grpc: Client) -> None:
    info = grpc.get_model("several")
    assert info.task == "multi-label"
    assert len(info.thresholds) == len(LABELS)
    assert grpc.get_model("toy").task == "single-label"


def test_a_model_with_one_label_is_answered_as_before(grpc: Client) -> None:
    answer = grpc.classify(IMAGE, model="toy", cam="gradcam")
    assert answer.task == "single-label"
    assert answer.labels == (LABELS[RANKED[0]],)
    assert [one.class_id for one in answer.predictions] == RANKED[:5]
    assert not any(one.assigned or one.threshold for one in answer.predictions)
    assert [one.map is not None for one in answer.predictions] == [True, False, False, False, False]


def test_http_answers_the_same_labels(http: Asking, grpc: Client) -> None:
    answer = http.post("/v1/classify?model=several&cam=gradcam", IMAGE).json
    expected = grpc.classify(IMAGE, model="several", cam="gradcam")
    assert answer["task"] == "multi-label"
    assert [one["class_id"] for one in answer["predictions"]] == ASSIGNED
    assert [one["map"]["values"] is not None for one in answer["predictions"]] == [True] * 3
    assert [one["threshold"] for one in answer["predictions"]] == pytest.approx([one.threshold for one in expected.predictions])


def test_a_png_of_several_maps_is_refused_in_one_line(http: Asking) -> None:
    answer = http.post("/v1/classify?model=several&cam=gradcam", IMAGE, Accept="image/png")
    assert answer.status == 400
    assert "3 labels are assigned, but a PNG shows one map" in str(answer.json)


def test_the_client_of_the_library_equals_the_model_in_process(server: int, models: Path) -> None:
    local = tlcli.load(models / "several").predict(IMAGE, cam="gradcam")
    with tlcli.Client(f"localhost:{server}") as client:
        remote = client.predict(IMAGE, model="several", cam="gradcam")
    assert [one.class_id for one in local.assigned] == ASSIGNED
    assert remote.assigned == local.assigned
    assert remote.explained == local.explained == tuple(ASSIGNED)
    np.testing.assert_array_equal(remote.maps["gradcam"], local.maps["gradcam"])


def test_without_a_label_there_is_no_overlay_and_the_message_says_so(models: Path) -> None:
    answer = tlcli.load(models / "none").predict(IMAGE, cam="gradcam")
    assert answer.assigned == answer.explained == ()
    with pytest.raises(RequestError, match="no label was assigned"):
        _ = answer.overlay
