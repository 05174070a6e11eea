"""All maps of a model from one place: those that its graph computes, and those that are computed by running the graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tlcli.contract.maps.eigencam import eigen_cam, eigen_grad_cam
from tlcli.contract.maps.fusion import fuse
from tlcli.contract.maps.method_names import require_method
from tlcli.contract.maps.scorecam import DEFAULT_CHANNELS, check_max_channels, is_score_cam, score_cam
from tlcli.contract.model.description import FUSED, Description, Layer
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer, Model

Maps = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64] | Sequence[int]

BATCH_SIZE = 16
"""Masked images at a time."""


def explain(
    model: Model,
    images: npt.NDArray[np.uint8],
    targets: Targets = (FIRST_RANKED,),
    methods: Sequence[str] = (),
    *,
    softmax: bool = False,
    max_channels: int | None = None,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], None] | None = None,
) -> Answer:
    """Scores, and maps of whatever method.

    Args:
        model: to ask.
        images, targets: see `Model.run`.
        methods: maps of the model's description, by name.
        softmax: explain the class's softmax probability instead of its logit.
        max_channels: how many channels Score-CAM and Faster-Score-CAM look through; None for all, and for ten.
        batch_size: how many masked images they run at a time.
        advance: is told after every such run how many channels were settled since the last, `channels_to_score` for each image
            in all. What it raises ends the work.

    Raises:
        RequestError: a shape, a class or a map that the model does not have, or `max_channels` where no map takes it.
    """
    steps = explain_in_steps(model, images, targets, methods, softmax=softmax, max_channels=max_channels, batch_size=batch_size)
    while True:
        try:
            settled = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        if advance is not None:
            advance(settled)


def explain_in_steps(
    model: Model,
    images: npt.NDArray[np.uint8],
    targets: Targets = (FIRST_RANKED,),
    methods: Sequence[str] = (),
    *,
    softmax: bool = False,
    max_channels: int | None = None,
    batch_size: int | Callable[[], int] = BATCH_SIZE,
) -> Generator[int, None, Answer]:
    """`explain`, run by run: between two of them its user may do other work, or leave off.

    Args:
        model, images, targets, methods, softmax, max_channels, batch_size: see `explain`; a function is asked before each run.

    Yields:
        Wherever another run of the graph follows, or has followed: how many channels were settled since the last time.

    Returns:
        What `explain` returns.

    Raises:
        RequestError: see `explain`; at the first step.
    """
    description = model.description
    names = tuple(dict.fromkeys(methods))
    for name in names:
        require_method(name, description.methods, f"model {description.name!r}")
    check_max_channels(max_channels, names)
    inside = tuple(name for name in names if description.map_output(name).in_graph)
    outside = {name: _sources(description, name) for name in names if name not in inside}
    sources = dict.fromkeys(source for needed in outside.values() for source in needed)

    def score(batch: npt.NDArray[np.uint8]) -> Maps:
        seen = model.run(batch)
        return seen.scores if softmax else seen.logits

    answer = model.run(images, targets, inside, _evidence(sources), softmax)
    if answer.classes is None or not outside:
        return answer
    found: dict[tuple[str, Layer], Maps] = {}
    for method, layer in sources:
        features = answer.evidence[layer.features]
        if method == "eigencam":
            found[method, layer] = eigen_cam(features, answer.classes.shape[1])
        elif method == "eigengradcam":
            found[method, layer] = eigen_grad_cam(features, answer.evidence[layer.gradients])
        else:
            yield 0
            channels = max_channels or DEFAULT_CHANNELS[method]
            mean = description.preprocessing.mean
            found[method, layer] = yield from score_cam(score, images, features, answer.classes, mean, channels, batch_size)
    maps = {name: _joined([found[source] for source in needed]) for name, needed in outside.items()}
    return replace(answer, maps={name: maps[name] if name in maps else answer.maps[name] for name in names}, evidence={})


def channels_to_score(description: Description, methods: Sequence[str], max_channels: int | None = None) -> int:
    """How many channels of each image the Score-CAMs among the maps look through: what `explain` advances by; 0 without any.

    Args:
        description: the model's.
        methods: maps of it, by name.
        max_channels: see `explain`.
    """
    sources = {source for name in methods if is_score_cam(name) for source in _sources(description, name)}
    return sum(min(layer.channels, max_channels or DEFAULT_CHANNELS[method] or layer.channels) for method, layer in sources)


def _sources(description: Description, name: str) -> tuple[tuple[str, Layer], ...]:
    """The method and the layers of a map that the graph does not compute: several for one that is fused."""
    output = description.map_output(name)
    return tuple((output.method, description.layer(layer)) for layer in output.layer.split(FUSED))


def _evidence(sources: dict[tuple[str, Layer], None]) -> tuple[str, ...]:
    outputs = [layer.features for _, layer in sources]
    outputs += [layer.gradients for method, layer in sources if method == "eigengradcam"]
    return tuple(dict.fromkeys(outputs))


def _joined(maps: Sequence[Maps]) -> Maps:
    return maps[0] if len(maps) == 1 else fuse(maps)
