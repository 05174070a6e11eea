"""A plain graph behind the interface of a flexible one: padding, splitting, and missing targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tlcli.contract.model.description import Plain
from tlcli.contract.model.plain_session import PlainSession

IMAGES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
TARGETS = np.arange(15).reshape(5, 3)


class Graph:
    """Graph whose outputs tell images and targets apart; it accepts only the shapes of its form."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.runs: list[tuple[int, int]] = []

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any], run_options: Any = None) -> list[np.ndarray]:
        images = input_feed["images"][:, 0, 0, 0].astype(np.int64)
        assert input_feed.keys() == ({"images", "targets"} if self.plain.classes == "input" else {"images"})
        targets = input_feed.get("targets", np.full((len(images), 1), -1))
        assert len(images) == len(targets) == (self.plain.batch or len(images))
        assert targets.shape[1] == (self.plain.explained or targets.shape[1])
        self.runs.append(targets.shape)
        values = {"scores": images[:, None], "classes": targets, "gradcam": (100 * images[:, None] + targets)[..., None, None]}
        return [values[name] for name in output_names]


@pytest.mark.parametrize(
    ("plain", "runs"),
    [
        (Plain(), [(5, 3)]),
        (Plain(batch=2), [(2, 3)] * 3),
        (Plain(explained=2), [(5, 2)] * 2),
        (Plain(batch=4, explained=2), [(4, 2)] * 4),
        (Plain(batch=8, explained=4), [(8, 4)]),
    ],
)
def test_any_number_of_images_and_classes(plain: Plain, runs: list[tuple[int, int]]) -> None:
    graph = Graph(plain)
    scores, classes, maps = PlainSession(graph, plain).run(["scores", "classes", "gradcam"], {"images": IMAGES, "targets": TARGETS})
    np.testing.assert_array_equal(scores[:, 0], np.arange(5))
    np.testing.assert_array_equal(classes, TARGETS)
    np.testing.assert_array_equal(maps[:, :, 0, 0], 100 * np.arange(5)[:, None] + TARGETS)
    assert graph.runs == runs


def test_one_row_of_targets_is_for_all_images_and_none_for_the_first_class() -> None:
    session = PlainSession(Graph(Plain()), Plain())
    (classes,) = session.run(["classes"], {"images": IMAGES, "targets": TARGETS[:1]})
    np.testing.assert_array_equal(classes, np.repeat(TARGETS[:1], 5, 0))
    (classes,) = session.run(["classes"], {"images": IMAGES})
    np.testing.assert_array_equal(classes, np.full((5, 1), -1))


@pytest.mark.parametrize("batch", [None, 2])
def test_the_first_class_needs_no_targets(batch: int | None) -> None:
    plain = Plain(classes="top", batch=batch)
    session = PlainSession(Graph(plain), plain)
    scores, maps = session.run(["scores", "gradcam"], {"images": IMAGES, "targets": np.full((1, 2), -1)})
    assert (scores.shape, maps.shape) == ((5, 1), (5, 2, 1, 1))
    np.testing.assert_array_equal(maps[:, 1, 0, 0], 100 * np.arange(5) - 1)
