"""Answers over gRPC: scores and maps are the model's, and maps cover the part of the image that their box names."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.service.sample_images import BLUE, GREEN, RED, Box, as_stored, encode, scene
from tests.helpers.service.toy_model import GRID, LABELS, PREPROCESSING, SIZE
from tests.service.conftest import FIRST, SECOND
from tlcli.contract.images import heatmap
from tlcli.contract.images.decoding import decode
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Classification, ClassMap, Client
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

TOLERANCE = 1e-5

RED_BOX: Box = (30, 20, 90, 70)
IMAGE = encode(scene(RED, RED_BOX), "JPEG", quality=90)


def network_input(image: bytes) -> np.ndarray:
    return PREPROCESSING.apply(decode(image))


def all_scores(answer: Classification) -> np.ndarray:
    """Return the scores `[C]` of an answer with every class."""
    return np.array([one.score for one in sorted(answer.predictions, key=lambda one: one.class_id)], np.float32)


def the_map(answer: Classification, class_id: int) -> ClassMap:
    (found,) = [one.map for one in answer.predictions if one.class_id == class_id]
    assert found is not None
    return found


def test_scores_equal_those_of_numpy_and_of_the_graph(client: Client, many_models: Path) -> None:
    answer = client.classify(IMAGE, model="toy", version="1", top_k=len(LABELS))
    twin = FIRST.answer(network_input(IMAGE))
    np.testing.assert_allclose(all_scores(answer), twin.scores, atol=TOLERANCE)
    graph = Model.open(many_models / "toy/1/model.onnx").run(network_input(IMAGE)[None])
    np.testing.assert_array_equal(all_scores(answer), graph.scores[0])
    assert [one.logit for one in answer.predictions] == sorted(graph.logits[0].tolist(), reverse=True)
    assert [one.rank for one in answer.predictions] == list(range(1, len(LABELS) + 1))
    assert all(one.label == LABELS[one.class_id] and one.map is None for one in answer.predictions)


@pytest.mark.parametrize(("version", "answered_by"), [("1", "1"), ("2", "2"), ("", "2")])
def test_the_named_version_answers_or_the_latest(client: Client, version: str, answered_by: str) -> None:
    answer = client.classify(IMAGE, model="toy", version=version, top_k=len(LABELS))
    assert (answer.model, answer.version) == ("toy", answered_by)
    expected = {"1": FIRST, "2": SECOND}[answered_by].answer(network_input(IMAGE))
    np.testing.assert_allclose(all_scores(answer), expected.scores, atol=TOLERANCE)


@pytest.mark.parametrize(("top_k", "count"), [(0, 5), (1, 1), (3, 3), (1000, len(LABELS))])
def test_top_k_defaults_to_five_and_is_at_most_all_classes(client: Client, top_k: int, count: int) -> None:
    assert len(client.classify(IMAGE, model="toy", top_k=top_k).predictions) == count


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_raw_maps_equal_those_of_numpy_for_ids_and_ranks(client: Client, method: str) -> None:
    twin = FIRST.answer(network_input(IMAGE))
    expected = getattr(twin, method)
    by_rank = np.argsort(-twin.logits)
    answer = client.classify(IMAGE, model="toy", version="1", top_k=2, cam=method, classes=(3, -1, 0, -7, 3))
    explained = {3, 0, int(by_rank[0]), int(by_rank[6])}
    assert {one.class_id for one in answer.predictions if one.map} == explained
    for class_id in explained:
        found = the_map(answer, class_id)
        assert found.values is not None
        assert (found.method, found.height, found.width, found.png) == (method, GRID, GRID, None)
        np.testing.assert_allclose(found.values, expected[class_id], atol=TOLERANCE)
    # the best two, then the explained ones that are not among them, best first
    assert [one.class_id for one in answer.predictions][:2] == by_rank[:2].tolist()
    ranks = [one.rank for one in answer.predictions]
    assert ranks == sorted(ranks)
    assert {one.class_id for one in answer.predictions} == explained | set(by_rank[:2].tolist())


def test_without_classes_the_first_ranked_is_explained(client: Client) -> None:
    answer = client.classify(IMAGE, model="toy", cam="gradcam")
    assert [one.map is not None for one in answer.predictions] == [True, False, False, False, False]


@pytest.mark.parametrize("box", [RED_BOX, (170, 120, 220, 180)])
def test_the_hot_spot_is_on_the_object(client: Client, box: Box) -> None:
    image = encode(scene(RED, box), "PNG")
    answer = client.classify(image, model="toy", version="1", cam="gradcam", classes=(0,))
    raw = the_map(answer, 0)
    assert raw.values is not None
    left, top, right, bottom = raw.box
    row, column = np.unravel_index(raw.values.argmax(), raw.values.shape)
    hot = (left + (column + 0.5) * (right - left) / GRID, top + (row + 0.5) * (bottom - top) / GRID)
    assert box[0] <= hot[0] <= box[2]
    assert box[1] <= hot[1] <= box[3]
    drawn = client.classify(image, model="toy", version="1", cam="gradcam", classes=(0,), map_format="heat_map")
    pixels = np.asarray(Image.open(io.BytesIO(the_map(drawn, 0).png or b""))).astype(int)
    warm = pixels[..., 0] - pixels[..., 2] > 150
    rows, columns = np.nonzero(warm)
    assert box[0] <= left + columns.mean() * (right - left) / SIZE <= box[2]
    assert box[1] <= top + rows.mean() * (bottom - top) / SIZE <= box[3]


def test_rendered_maps_are_pngs_of_the_documented_sizes_and_equal_local_ones(client: Client) -> None:
    image = scene(RED, (300, 200, 700, 600), size=(1500, 900))
    data = encode(image, "PNG")
    box = PREPROCESSING.visible_box(*image.size)
    values = {
        one.class_id: one.map.values
        for one in client.classify(data, model="toy", cam="cam", classes=(0, 1)).predictions
        if one.map is not None and one.map.values is not None
    }
    heat = client.classify(data, model="toy", cam="cam", classes=(0, 1), map_format="heat_map")
    over = client.classify(data, model="toy", cam="cam", classes=(0, 1), map_format="overlay")
    for class_id in (0, 1):
        heat_map, overlay = the_map(heat, class_id), the_map(over, class_id)
        assert heat_map.values is None
        assert overlay.values is None
        assert heat_map.box == overlay.box == pytest.approx(box)
        heat_image, overlay_image = (Image.open(io.BytesIO(one.png or b"")) for one in (heat_map, overlay))
        assert (heat_image.format, heat_image.size) == ("PNG", (SIZE, SIZE))
        assert (overlay_image.format, overlay_image.size) == ("PNG", (1024, round(1024 * 900 / 1500)))
        np.testing.assert_array_equal(np.asarray(heat_image), np.asarray(heatmap.heat_map(values[class_id], SIZE, SIZE)))
        np.testing.assert_array_equal(np.asarray(overlay_image), np.asarray(heatmap.overlay(image, values[class_id], box)))


def test_pixels_are_used_without_preprocessing(client: Client) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    answer = client.classify(pixels, model="toy", version="1", top_k=len(LABELS), cam="cam", classes=(2,))
    twin = FIRST.answer(pixels)
    np.testing.assert_allclose(all_scores(answer), twin.scores, atol=TOLERANCE)
    found = the_map(answer, 2)
    assert found.values is not None
    np.testing.assert_allclose(found.values, twin.cam[2], atol=TOLERANCE)
    assert found.box == (0, 0, SIZE, SIZE)
    over = the_map(client.classify(pixels, model="toy", version="1", cam="cam", classes=(2,), map_format="overlay"), 2)
    expected = heatmap.overlay(Image.fromarray(pixels), found.values, (0, 0, SIZE, SIZE))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(over.png or b""))), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(client: Client, orientation: int) -> None:
    stored = as_stored(scene(RED, RED_BOX), orientation)
    answer = client.classify(stored, model="toy", version="1", cam="gradcam", classes=(0,))
    found = the_map(answer, 0)
    assert found.values is not None
    assert found.box == pytest.approx(PREPROCESSING.visible_box(256, 192))
    row, column = np.unravel_index(found.values.argmax(), found.values.shape)
    assert row < GRID / 2
    assert column < GRID / 2


def test_the_same_image_as_bytes_file_and_pillow_image_gets_the_same_answer(client: Client, tmp_path: Path) -> None:
    image = scene(GREEN, RED_BOX)
    (tmp_path / "image.png").write_bytes(encode(image))
    given = [encode(image), tmp_path / "image.png", str(tmp_path / "image.png"), image, network_input(encode(image))]
    first, *others = [client.classify(one, model="toy").predictions for one in given]
    assert all(other == first for other in others)


def test_a_pillow_image_is_turned_upright_before_it_is_sent(client: Client) -> None:
    stored = as_stored(scene(RED, RED_BOX), 6)
    from_bytes = client.classify(stored, model="toy")
    assert client.classify(Image.open(io.BytesIO(stored)), model="toy").predictions == from_bytes.predictions


def test_the_answer_holds_timings_and_the_request_id(client: Client) -> None:
    answer = client.classify(IMAGE, model="toy", cam="cam", map_format="overlay", request_id="mine")
    assert answer.request_id == "mine"
    assert answer.timings.decode_time_ns > 0
    assert answer.timings.queue_time_ns > 0
    assert answer.timings.infer_time_ns > 0
    assert answer.timings.render_time_ns > 0
    assert client.classify(IMAGE, model="toy").timings.render_time_ns == 0


def test_an_absent_map_format_means_raw(stub: ClassifierStub) -> None:
    answer = stub.Classify(pb.ClassifyRequest(model="toy", encoded=IMAGE, map=pb.MapRequest(method="cam")))
    assert len(answer.predictions[0].map.values) == 4 * GRID * GRID


def test_clients_in_several_threads_get_their_own_answers(port: int) -> None:
    images = {
        color: encode(scene(value, (40, 20, 200, 160), seed=value[2])) for color, value in (("red", RED), ("green", GREEN), ("blue", BLUE))
    }

    def ask(number: int) -> list[tuple[str, str, str]]:
        with Client(port=port) as mine:
            names = [list(images)[(number + turn) % 3] for turn in range(25)]
            answers = [mine.classify(images[name], model="toy", top_k=1, request_id=f"{number} {name}") for name in names]
            return [
                (answer.request_id, f"{number} {name}", answer.predictions[0].label) for name, answer in zip(names, answers, strict=True)
            ]

    with ThreadPoolExecutor(4) as threads:
        for answers in threads.map(ask, range(4)):
            for request_id, asked, label in answers:
                assert request_id == asked
                assert asked.endswith(label)
