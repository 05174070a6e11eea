"""Maps of every label that a model with several labels per image assigns, each with the label's own map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tlcli.contract.model.explain import BATCH_SIZE, explain
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer, Model

EXPLAINED_AT_ONCE = 8
"""Number of top-ranked classes that the first run explains, before it is known which labels an image has."""


def first_targets(model: Model) -> tuple[int, ...]:
    """Return the ranks that the first run explains, at most `EXPLAINED_AT_ONCE`."""
    return tuple(-rank for rank in range(1, min(EXPLAINED_AT_ONCE, model.num_classes) + 1))


def missing_targets(model: Model, answer: Answer) -> npt.NDArray[np.int64] | None:
    """Return the targets of a second run, int64 `[N, K]`, or None if the answer already explains every assigned label.

    A row repeats the top-ranked class if an image has fewer labels than another.
    """
    assert answer.classes is not None
    labels = [model.description.assigned(row) for row in answer.scores]
    if all(set(own) <= set(explained) for own, explained in zip(labels, answer.classes.tolist(), strict=True)):
        return None
    targets = np.full((len(labels), max(map(len, labels))), FIRST_RANKED, dtype=np.int64)
    for row, own in zip(targets, labels, strict=True):
        row[: len(own)] = own
    return targets


def keep_assigned(model: Model, answer: Answer, index: int) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]:
    """Return the assigned labels of an image that an answer explains, best first, int64 `[K]`, and their maps, `[K, h, w]` each."""
    assert answer.classes is not None
    place = {class_id: number for number, class_id in reversed(list(enumerate(answer.classes[index].tolist())))}
    labels = [class_id for class_id in model.description.assigned(answer.scores[index]) if class_id in place]
    chosen = [place[class_id] for class_id in labels]
    return np.array(labels, dtype=np.int64), {name: values[index][chosen] for name, values in answer.maps.items()}


def explain_labels(
    model: Model,
    images: npt.NDArray[np.uint8],
    methods: Sequence[str],
    *,
    softmax: bool = False,
    max_channels: int | None = None,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> Answer:
    """Compute scores, and maps of at least the labels that each image has. `keep_assigned` selects them.

    One run explains the `EXPLAINED_AT_ONCE` top-ranked classes. Only if an image has a label beyond these, a second run explains exactly
    the labels of the images.

    Args:
        model: opened model with several labels per image.
        images, methods, softmax, max_channels, batch_size, advance: see `tlcli.contract.model.explain.explain`.

    Raises:
        RequestError: see `tlcli.contract.model.explain.explain`.
    """
    options = {"softmax": softmax, "max_channels": max_channels, "batch_size": batch_size}
    answer = explain(model, images, first_targets(model), methods, advance=advance, **options)  # type: ignore[arg-type]
    if answer.classes is None:
        return answer
    targets = missing_targets(model, answer)
    if targets is None:
        return answer
    again = explain(model, images, targets, methods, **options)  # type: ignore[arg-type]
    return replace(again, scores=answer.scores, logits=answer.logits)
