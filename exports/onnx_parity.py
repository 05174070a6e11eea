"""Parity check of an export from a foreign ONNX file, against the file itself and against finite differences in float64.

- The logits are those of the original file, run by ONNX Runtime as it is on disk.
- The gradients are compared along random directions v: `<g, v>` with `(y(A + e v) - y(A - e v)) / 2e`, where y is computed in float64 from
  the file's nodes. A gradient with one wrong number has a wrong derivative along almost every direction.
- The maps are computed again in float64 from the activations and the gradients, by formulas that share no code with the graph's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import helper

from tlcli.contract.errors import ParityError
from tlcli.contract.maps.method_names import COSTLY, map_name
from tlcli.contract.model.description import FUSED, Layer, MapOutput, Parity
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.exports.onnx_source import double_formulas
from tlcli.exports.onnx_source.double_formulas import Doubles
from tlcli.exports.onnx_source.double_tail import DoubleTail
from tlcli.exports.onnx_source.explained_graph import ExplainedGraph
from tlcli.exports.onnx_source.graph.graph_part import Tail, open_session, values_of
from tlcli.exports.onnx_source.graph.source_file import needed_ir_version, shown
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.spatial_values import SpatialValue

LOGITS_TOLERANCE = 1e-3
LARGE_LOGIT = 100.0
MAPS_TOLERANCE = 1e-4
SHARE_OF_TERMS = 0.1
MAPS_TOLERANCES = {"xgradcam": 1e-3, "ablationcam": 1e-3, "gradcam_plus_plus": 1e-2}
MAPS_THAT_COUNT = 0.75
"""As in `tlcli.exports.parity`, which explains the tolerances. It needs PyTorch, so they are here again; a test holds them equal."""
_AT_THE_THRESHOLD = 1e-5

_DIRECTIONS = 4
_STEP = 1e-7
"""Length of a step relative to the activations: so short that it rarely crosses a kink of ReLU, and long enough for float64."""
_IMAGES_WITH_DERIVATIVES = 2
_BATCH = 8
_RANKS = (-1, -2)
_KINKED = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Relu", "LeakyRelu", "PRelu", "Abs", "Clip"})
"""Operators whose derivative does not exist where activations are 0 or equal."""

Images = Sequence[npt.NDArray[np.uint8]]


def measure(explained: ExplainedGraph, path: Path, model: Model, image_input: ImageInput, images: Images, source: str) -> Parity:
    """Measure the differences between the exported file and the file that it was made from.

    Args:
        explained: graph that was exported.
        path: original file.
        model: the opened exported file.
        image_input: form of the images that the original file takes.
        images: inputs, uint8 `[H, W, 3]` each.
        source: origin of the images, recorded in the result.
    """
    original = _Original(path, explained, image_input)
    maps = _MapCheck(explained, model, image_input)
    difference, agreed = 0.0, 0
    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        answer = model.run(batch, _RANKS, maps.quick, maps.evidence)
        expected, answered = original.compared(batch, answer)
        scale = max(1.0, float(np.abs(expected).max()) / LARGE_LOGIT)
        difference = max(difference, float(np.abs(answered - expected).max()) / scale, original.scores_difference(answer))
        behind = expected.max(1) - expected[np.arange(len(batch)), answered.argmax(1)]
        agreed += int((behind <= LOGITS_TOLERANCE / 100 * np.maximum(1, np.abs(expected).max(1) / LARGE_LOGIT)).sum())
        maps.compare(answer)
    maps.compare_ablation(np.stack(images[:1]))
    if maps.evidence:
        maps.compare_derivatives(np.stack(images[:_IMAGES_WITH_DERIVATIVES]))
    return Parity(images=len(images), source=source, logits=difference, maps=maps.result(), top1_agreement=agreed / len(images))


def require(parity: Parity, path: Path) -> None:
    """Check that the measured differences are within their tolerances.

    Raises:
        ParityError: a difference exceeds its tolerance, or the top-1 class differs for some images.
    """
    problems = []
    if not parity.logits <= LOGITS_TOLERANCE:
        problems.append(f"logits differ by {parity.logits:.2g}, more than {LOGITS_TOLERANCE:g}")
    if parity.top1_agreement < 1:
        problems.append(f"the first class agrees on only {parity.top1_agreement:.1%} of the images")
    for name, difference in parity.maps.items():
        allowed = MAPS_TOLERANCES.get(name.partition("@")[0], MAPS_TOLERANCE)
        if not difference <= allowed:
            problems.append(f"{name} differs by {difference:.2g} of its largest value, more than {allowed:g}")
    if problems:
        raise ParityError(
            f"the exported graph differs from {path} on {parity.images} images: {'; '.join(problems)}: use another --cam-layer, or"
            " --cam none"
        )


class _Original:
    """Original file on ONNX Runtime, with its logits."""

    def __init__(self, path: Path, explained: ExplainedGraph, image_input: ImageInput) -> None:
        model = onnx.load(str(path))
        model.ir_version = min(model.ir_version, needed_ir_version(model))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        made = {name for node in model.graph.node for name in node.output}
        logits = shown(explained.classifier.logits)
        self._has_logits = logits in made
        self._has_softmax = explained.classifier.squashing == "softmax"
        scores = shown(explained.scores)
        self._outputs = list(dict.fromkeys([logits if self._has_logits else scores, scores]))
        for name in {*self._outputs} - {value.name for value in model.graph.output}:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
        self._answered: list[npt.NDArray[np.float32]] = []
        self._session = open_session(model)
        self._fixed = explained.fixed_batch
        self._input = shown(explained.graph.input)
        self._image_input = image_input

    def compared(self, images: npt.NDArray[np.uint8], answer: Answer) -> tuple[Doubles, Doubles]:
        """Return what the original file answers, and the same from the exported file: the logits, or the scores if it has no logits."""
        inputs = self._image_input.apply(images)
        size = self._fixed or len(inputs)
        chunks = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        runs = [self._session.run(self._outputs, {self._input: _filled(chunk, size)}) for chunk in chunks]
        joined = [np.concatenate([run[number] for run in runs])[: len(images)] for number in range(len(self._outputs))]
        self._answered = [values.reshape(len(images), -1) for values in joined]
        expected = self._answered[0].astype(np.float64)
        return expected, (answer.logits if self._has_logits else answer.scores).astype(np.float64)

    def scores_difference(self, answer: Answer) -> float:
        """Return the largest difference from the scores that the file computed last, if it ends in a softmax."""
        return float(np.abs(self._answered[-1] - answer.scores).max()) if self._has_softmax else 0.0


def _filled(batch: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return batch if len(batch) == size else np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])


class _MapCheck:
    """Differences of the maps, collected over batches."""

    def __init__(self, explained: ExplainedGraph, model: Model, image_input: ImageInput) -> None:
        self._explained = explained
        self._model = model
        self._image_input = image_input
        description = model.description
        self._layers = description.layers
        self._outputs = [output for output in description.maps if output.in_graph]
        self.quick = [output.name for output in self._outputs if output.method not in COSTLY]
        self.evidence = [name for layer in self._layers for name in (layer.features, layer.gradients)]
        self._differences: dict[str, list[Doubles]] = {output.name: [] for output in self._outputs}
        self._largest: dict[str, list[Doubles]] = {output.name: [] for output in self._outputs}
        self._derivatives: dict[str, float] = {}

    def compare(self, answer: Answer) -> None:
        """Compare the maps with the float64 formulas."""
        for output in self._outputs:
            if output.method in COSTLY or FUSED in output.layer:
                continue
            layer = next(layer for layer in self._layers if layer.name == output.layer)
            a = answer.evidence[layer.features].astype(np.float64)[:, None]
            if output.method == "fem":
                lowest, highest = double_formulas.fem_bounds(a, _AT_THE_THRESHOLD)
                self._add(output.name, answer.maps[output.name], lowest, highest, highest)
            else:
                values, terms = double_formulas.FORMULAS[output.method](a, answer.evidence[layer.gradients].astype(np.float64))
                self._add(output.name, answer.maps[output.name], values, values, terms)
        self._compare_fused(answer)

    def _compare_fused(self, answer: Answer) -> None:
        for output in self._outputs:
            if FUSED in output.layer and output.method not in COSTLY:
                parts = [answer.maps[map_name(output.method, layer.name)].astype(np.float64) for layer in self._layers]
                values = double_formulas.fuse(parts)
                self._add(output.name, answer.maps[output.name], values, values, np.ones_like(values))

    def _add(self, name: str, answered: npt.NDArray[np.float32], lowest: Doubles, highest: Doubles, terms: Doubles) -> None:
        outside = np.maximum(np.maximum(lowest - answered, answered - highest), 0).max((-2, -1))
        largest = np.maximum(np.abs(highest).max((-2, -1)), SHARE_OF_TERMS * terms.max((-2, -1)))
        self._differences[name].append(outside.ravel())
        self._largest[name].append(np.broadcast_to(largest, outside.shape).ravel())

    def compare_ablation(self, images: npt.NDArray[np.uint8]) -> None:
        """Compare Ablation-CAM with runs of the part after the layer, one for each channel."""
        outputs = [output for output in self._outputs if output.method in COSTLY]
        if not outputs:
            return
        answer = self._model.run(images, _RANKS[:1], [output.name for output in outputs], self.evidence)
        assert answer.classes is not None
        for output in outputs:
            if FUSED in output.layer:
                parts = [answer.maps[map_name(output.method, layer.name)].astype(np.float64) for layer in self._layers]
                values = double_formulas.fuse(parts)
                self._add(output.name, answer.maps[output.name], values, values, np.ones_like(values))
                continue
            number, layer = next((number, layer) for number, layer in enumerate(self._layers) if layer.name == output.layer)
            a = answer.evidence[layer.features].astype(np.float64)[:, None]
            ablated = self._ablated(number, images)[answer.classes[0]]
            scores = answer.logits[:, answer.classes[0]].astype(np.float64)
            values, terms = double_formulas.ablationcam(a, scores, ablated[None])
            self._add(output.name, answer.maps[output.name], values, values, terms)

    def _ablated(self, number: int, images: npt.NDArray[np.uint8]) -> Doubles:
        """Return the logits of one image without each channel of a layer, `[C, c]`."""
        value, classifier = self._explained.spatial[number], self._explained.classifier
        tail = Tail(self._explained.graph, value.name, classifier.logits)
        held = self._saved(value, tail.saved, images)
        activations = held.pop(value.name)
        axis = 3 if value.channels_last else 1
        rows = []
        for start in range(0, value.channels, _BATCH):
            channels = np.arange(start, min(start + _BATCH, value.channels))
            changed = np.repeat(activations, len(channels), 0)
            for row, channel in enumerate(channels):
                np.moveaxis(changed[row], axis - 1, 0)[channel] = 0
            feed = {name: np.tile(array, (len(channels), *[1] * (array.ndim - 1))) for name, array in held.items()}
            rows.append(tail(changed, feed))
        return np.concatenate(rows).astype(np.float64).T

    def _saved(self, value: SpatialValue, names: Sequence[str], images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Return a layer's activations and other values of the forward pass."""
        return values_of(self._explained.graph, [value.name, *names], self._image_input.apply(images))

    def compare_derivatives(self, images: npt.NDArray[np.uint8]) -> None:
        """Compare the gradients of each layer with finite differences along random directions."""
        answer = self._model.run(images, _RANKS, (), self.evidence)
        assert answer.classes is not None
        for value, layer in zip(self._explained.spatial, self._layers, strict=True):
            tail = DoubleTail(self._explained.graph, value.name, self._explained.classifier.logits)
            differences: list[Doubles] = []
            scales: list[Doubles] = []
            for number in range(len(images)):
                held = self._saved(value, tail.saved, images[number : number + 1])
                gradients = answer.evidence[layer.gradients][number].astype(np.float64)
                if value.channels_last:
                    gradients = gradients.transpose(0, 2, 3, 1)
                difference, scale = self._along_directions(tail, value, held, gradients, answer.classes[number], number)
                differences.append(difference)
                scales.append(scale)
            self._derivatives[layer.name] = _relative(np.concatenate(differences), np.concatenate(scales), MAPS_THAT_COUNT)

    def _along_directions(
        self,
        tail: DoubleTail,
        value: SpatialValue,
        held: dict[str, npt.NDArray[np.float32]],
        gradients: Doubles,
        classes: npt.NDArray[np.int64],
        seed: int,
    ) -> tuple[Doubles, Doubles]:
        """Return the differences of the derivatives along each direction for each class, and the size of these derivatives."""
        activations = held[value.name].astype(np.float64)
        directions = np.random.default_rng(seed).standard_normal((_DIRECTIONS, *activations.shape[1:]))
        if any(node.op_type in _KINKED and value.name in node.input for node in self._explained.graph.nodes):
            directions = directions * (activations != 0)
        step = _STEP * max(float(np.sqrt((activations**2).mean())), 1e-30)
        moved = np.concatenate([activations + step * directions, activations - step * directions])
        saved = {name: np.tile(held[name].astype(np.float64), (len(moved), *[1] * (held[name].ndim - 1))) for name in tail.saved}
        logits = tail(moved, saved)[:, classes]
        found = (logits[:_DIRECTIONS] - logits[_DIRECTIONS:]) / (2 * step)
        products = gradients[None] * directions[:, None]
        axes = tuple(range(2, products.ndim))
        return np.abs(found - products.sum(axes)).ravel(), np.sqrt((products**2).sum(axes)).ravel()

    def result(self) -> dict[str, float]:
        """Return the largest relative difference of each map, of its formula or of the gradients in it."""
        return {output.name: self._result_of(output) for output in self._outputs}

    def _result_of(self, output: MapOutput) -> float:
        formula = _relative(np.concatenate(self._differences[output.name]), np.concatenate(self._largest[output.name]), 1.0)
        if output.method in ("fem", *COSTLY):
            return formula
        return max(formula, *(self._derivatives[layer.name] for layer in self._layers if _uses(output, layer)))


def _uses(output: MapOutput, layer: Layer) -> bool:
    return layer.name in (output.layer, *output.layer.split(FUSED))


def _relative(differences: Doubles, largest: Doubles, share: float) -> float:
    """Return the largest relative difference among the `share` of the values that agree best; see `tlcli.exports.parity`."""
    floor = max(float(largest.max(initial=0.0)) * 1e-3, float(np.finfo(np.float32).tiny))
    relative = np.sort(differences / np.maximum(largest, floor))
    return float(relative[: math.ceil(share * len(relative))].max(initial=0.0))
