"""Batches of a few fixed sizes return the same as batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.exports.small_networks import Exports, blobs
from tlcli.contract.model.fixed_batches import FixedBatches
from tlcli.contract.model.onnx_model import Model

SIZES = (1, 4)


class Recorder:
    """Fake session that doubles the images and records their shapes."""

    def __init__(self) -> None:
        self.shapes: list[dict[str, tuple[int, ...]]] = []

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[npt.NDArray[Any]]:
        self.shapes.append({name: values.shape for name, values in input_feed.items()})
        return [2 * input_feed["images"] for _ in output_names]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 4), (3, 4), (4, 4)])
def test_a_session_sees_one_batch_size(count: int, size: int) -> None:
    sessions = {size: Recorder() for size in SIZES}
    images = np.arange(count * 2).reshape(count, 2)
    targets = np.arange(count).reshape(count, 1)
    (doubled,) = FixedBatches(sessions).run(["scores"], {"images": images, "targets": targets, "wanted": np.ones((1, 3))})
    np.testing.assert_array_equal(doubled, 2 * images)
    assert {number: recorder.shapes for number, recorder in sessions.items()} == {
        number: [{"images": (size, 2), "targets": (size, 1), "wanted": (1, 3)}] if number == size else [] for number in SIZES
    }


def test_targets_for_all_images_stay_one_row() -> None:
    session = Recorder()
    FixedBatches({4: session}).run(["scores"], {"images": np.zeros((3, 2)), "targets": np.zeros((1, 5))})
    assert session.shapes == [{"images": (4, 2), "targets": (1, 5)}]


def test_a_larger_batch_runs_in_pieces() -> None:
    sessions = {1: Recorder(), 2: Recorder()}
    images, targets = np.arange(10).reshape(5, 2), np.arange(5).reshape(5, 1)
    (doubled,) = FixedBatches(sessions).run(["scores"], {"images": images, "targets": targets, "wanted": np.ones((1, 3))})
    np.testing.assert_array_equal(doubled, 2 * images)
    assert sessions[2].shapes == [{"images": (2, 2), "targets": (2, 1), "wanted": (1, 3)}] * 2
    assert sessions[1].shapes == [{"images": (1, 2), "targets": (1, 1), "wanted": (1, 3)}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """Open the same file for any batch size, and for fixed batch sizes."""
    path = Exports(tmp_path_factory.mktemp("exports"))("test_resnet", "mlp:16").model.path
    return Model.open(path, "cpu"), Model.open(path, "cpu", batch_sizes=SIZES)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_answers_are_those_of_any_batch_size(models: tuple[Model, Model], count: int) -> None:
    size = models[0].description.preprocessing
    images = blobs(6, size.height, size.width)[:count]
    targets = np.array([[number % 3, -1] for number in range(count)])
    maps = models[0].description.graph_maps
    expected, padded = (model.run(images, targets, methods=maps, softmax=True) for model in models)
    np.testing.assert_allclose(padded.logits, expected.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(padded.classes, expected.classes)
    for name in maps:
        np.testing.assert_allclose(padded.maps[name], expected.maps[name], rtol=1e-4, atol=1e-6, err_msg=name)
