"""Computation of all maps that a model offers: those in its graph, and those that run the graph several times."""

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
"""Default batch size for masked images."""


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
    """Compute scores and maps of any method.

    Args:
        model: opened model.
        images, targets: see `Model.run`.
        methods: names of the maps to compute, from the model's description.
        softmax: explain the class's softmax probability instead of its logit.
        max_channels: number of channels to score for Score-CAM and Faster-Score-CAM; None scores all channels for Score-CAM and ten for
            Faster-Score-CAM.
        batch_size: number of masked images per forward pass of these two methods.
        advance: callback that receives the number of channels scored since its previous call, after each of these passes. The numbers add
            up to `channels_to_score` per image. An exception from the callback stops the computation.

    Raises:
        RequestError: the images have the wrong shape, the model does not have a class or map, or `max_channels` is given without a map
            that uses it.
    """
    steps = explain_in_steps(model, images, targets, methods, softmax=softmax, max_channels=max_channels, batch_size=batch_size)
    while True:
        try:
            scored = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        if advance is not None:
            advance(scored)


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
    """Compute scores and maps like `explain`, as a generator that yields between runs of the graph.

    The caller can do other work at each yield, or stop the computation.

    Args:
        model, images, targets, methods, softmax, max_channels: see `explain`.
        batch_size: see `explain`; a function is called before each run to get the current batch size.

    Yields:
        The number of channels scored since the previous yield.

    Returns:
        The same `Answer` as `explain`.

    Raises:
        RequestError: see `explain`; it is raised at the first step.
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
        masked = model.run(batch)
        return masked.scores if softmax else masked.logits

    answer = model.run(images, targets, inside, _evidence(sources), softmax)
    if answer.classes is None or not outside:
        return answer
    layer_maps: dict[tuple[str, Layer], Maps] = {}
    for method, layer in sources:
        features = answer.evidence[layer.features]
        if method == "eigencam":
            layer_maps[method, layer] = eigen_cam(features, answer.classes.shape[1])
        elif method == "eigengradcam":
            layer_maps[method, layer] = eigen_grad_cam(features, answer.evidence[layer.gradients])
        else:
            yield 0
            channels = max_channels or DEFAULT_CHANNELS[method]
            mean = description.preprocessing.mean
            layer_maps[method, layer] = yield from score_cam(score, images, features, answer.classes, mean, channels, batch_size)
    maps = {name: _fused([layer_maps[source] for source in needed]) for name, needed in outside.items()}
    return replace(answer, maps={name: maps[name] if name in maps else answer.maps[name] for name in names}, evidence={})


def channels_to_score(description: Description, methods: Sequence[str], max_channels: int | None = None) -> int:
    """Return the number of channels that `explain` scores per image for Score-CAM and Faster-Score-CAM maps, or 0 without such maps.

    Args:
        description: description of the model.
        methods: names of the requested maps.
        max_channels: see `explain`.
    """
    sources = {source for name in methods if is_score_cam(name) for source in _sources(description, name)}
    return sum(min(layer.channels, max_channels or DEFAULT_CHANNELS[method] or layer.channels) for method, layer in sources)


def _sources(description: Description, name: str) -> tuple[tuple[str, Layer], ...]:
    """Return the (method, layer) pairs of a map that the graph does not compute: one pair, or one per layer of a fused map."""
    output = description.map_output(name)
    return tuple((output.method, description.layer(layer)) for layer in output.layer.split(FUSED))


def _evidence(sources: dict[tuple[str, Layer], None]) -> tuple[str, ...]:
    outputs = [layer.features for _, layer in sources]
    outputs += [layer.gradients for method, layer in sources if method == "eigengradcam"]
    return tuple(dict.fromkeys(outputs))


def _fused(maps: Sequence[Maps]) -> Maps:
    return maps[0] if len(maps) == 1 else fuse(maps)
