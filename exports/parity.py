"""Parity check of an export: compares the ONNX file, run as the server runs it, with PyTorch on sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tlcli.contract.errors import ParityError
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import MapOutput, Parity
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.exports.reference_maps import Autograd
from tlcli.exports.trace.explainer import is_pooled_linear
from tlcli.training.models.network import ImageNetwork
from tlcli.training.models.target_layers import resolve_layers

LOGITS_TOLERANCE = 1e-3
"""Maximum difference of the logits. It is absolute for logits up to `LARGE_LOGIT`. Above that, where float32 has no more digits, it scales
with the largest logit."""
LARGE_LOGIT = 100.0
MAPS_TOLERANCE = 1e-4
"""Maximum difference of a map, relative to the map's largest value."""
SHARE_OF_TERMS = 0.1
"""Lower bound of the reference value for a map whose terms cancel, as a fraction of the terms' size. A tolerance of 1e-4 of a tenth of the
terms' size is 1e-5 of that size, the precision of float32 sums of gradients and activations."""
MAPS_TOLERANCES = {"xgradcam": 1e-3, "ablationcam": 1e-3, "gradcam_plus_plus": 1e-2}
"""Tolerances for methods that divide by small numbers or subtract nearly equal ones, so that float32 has fewer correct digits."""
MAPS_THAT_COUNT = 0.75
"""Share of the maps that must agree; the maps with the largest differences are ignored. The derivatives of ReLU and max pooling are
discontinuous: an image that is on such an edge to the last digit of float32 has different maps in any two implementations. A wrong graph is
wrong on most images. If a single linear layer follows the explained layer, there is no discontinuity, and all maps must agree."""
_BATCH = 8
_RANKS = (-1, -2)


def measure(network: ImageNetwork, model: Model, images: Sequence[npt.NDArray[np.uint8]], source: str) -> Parity:
    """Measure the differences between the exported file and the network that it was exported from.

    Args:
        network: network in eval mode on the CPU.
        model: the opened ONNX file.
        images: inputs, uint8 `[H, W, 3]` each.
        source: origin of the images, recorded in the result.
    """
    logits_difference, agreed = 0.0, 0
    outputs = [output for output in model.description.maps if output.in_graph]
    quick = [output for output in outputs if output.method not in COSTLY]
    costly = [output for output in outputs if output.method in COSTLY]
    differences: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    largest: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    layers = [layer.name for layer in model.description.layers]
    targets = resolve_layers(network, layers) if layers else []
    autograd = Autograd(network, targets)
    plain = model.description.plain
    ranks = _RANKS[:1] if plain is not None and plain.classes == "top" else _RANKS

    def compare(batch: npt.NDArray[np.uint8], answer: Answer, compared: Sequence[MapOutput]) -> None:
        assert answer.classes is not None
        for name, values in autograd.maps(torch.from_numpy(batch), torch.from_numpy(answer.classes), compared).items():
            answered = answer.maps[name].astype(np.float64)
            outside = np.maximum(values.lowest.numpy() - answered, answered - values.highest.numpy()).clip(min=0)
            differences[name].append(outside.max((-2, -1)).ravel())
            largest[name].append(np.maximum(np.abs(values.values.numpy()).max((-2, -1)), SHARE_OF_TERMS * values.terms.numpy()).ravel())

    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        answer = model.run(batch, ranks, [output.name for output in quick])
        expected = autograd.logits(torch.from_numpy(batch)).numpy().astype(np.float64)
        scale = max(1.0, float(np.abs(expected).max()) / LARGE_LOGIT)
        logits_difference = max(logits_difference, float(np.abs(answer.logits - expected).max()) / scale)
        agreed += _agreeing(expected, answer.logits)
        if quick:
            compare(batch, answer, quick)
    if costly:
        first = np.stack(images[:1])
        compare(first, model.run(first, _RANKS[:1], [output.name for output in costly]), costly)
    smooth = len(targets) == 1 and is_pooled_linear(network, targets[0])
    return Parity(
        images=len(images),
        source=source,
        logits=logits_difference,
        maps={
            name: _relative(
                np.concatenate(differences[name]),
                np.concatenate(largest[name]),
                1.0 if smooth else MAPS_THAT_COUNT,
            )
            for name in differences
        },
        top1_agreement=agreed / len(images),
    )


def require(parity: Parity) -> None:
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
            f"the exported graph differs from PyTorch on {parity.images} images: {'; '.join(problems)}: use another backbone or layer"
        )


def _agreeing(expected: npt.NDArray[np.float64], answered: npt.NDArray[np.float32]) -> int:
    """Count the rows with the same top-1 class. Classes whose PyTorch logits differ by less than 1% of the tolerance count as tied."""
    rows = np.arange(len(expected))
    behind = expected.max(1) - expected[rows, answered.argmax(1)]
    return int((behind <= LOGITS_TOLERANCE / 100 * np.maximum(1, np.abs(expected).max(1) / LARGE_LOGIT)).sum())


def _relative(differences: npt.NDArray[np.float64], largest: npt.NDArray[np.float64], share: float) -> float:
    """Return the largest relative difference among the `share` of the maps that agree best.

    Each difference is relative to the largest value of its map, but at least to a thousandth of the largest value of all maps: a map of
    near-zero values consists of rounding errors.
    """
    floor = max(largest.max(initial=0.0) * 1e-3, np.finfo(np.float32).tiny)
    relative = np.sort(differences / np.maximum(largest, floor))
    return float(relative[: math.ceil(share * len(relative))].max(initial=0.0))
