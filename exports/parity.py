"""Parity check of an export: the file, run as the server runs it, against PyTorch on real images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tlcli.contract.errors import ParityError
from tlcli.contract.model.description import MapOutput, Parity
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.exports.reference_maps import Autograd
from tlcli.exports.trace.explainer import is_pooled_linear
from tlcli.exports.trace.map_methods import NEEDS_ABLATION
from tlcli.exports.trace.target_layers import resolve_layers
from tlcli.training.models.network import ImageNetwork, Network

LOGITS_TOLERANCE = 1e-3
"""Largest difference of logits: absolute up to `LARGE_LOGIT`, relative to the largest above it, where float32 has no more digits."""
LARGE_LOGIT = 100.0
MAPS_TOLERANCE = 1e-4
"""Largest difference of maps, relative to the map's largest value."""
SHARE_OF_TERMS = 0.1
"""A map whose terms cancel to less than this share of their size is measured against that share: 1e-4 of a tenth of the terms' size is 1e-5
of it, the precision of float32 sums of gradients and activations."""
MAPS_TOLERANCES = {"xgradcam": 1e-3, "ablationcam": 1e-3, "gradcam_plus_plus": 1e-2}
"""Tolerances of methods that divide by small numbers, or subtract nearly equal ones: float32 has no more digits of these maps."""
MAPS_THAT_COUNT = 0.75
"""Share of the maps, the nearest ones, that must agree. The derivatives of ReLU and of max pooling jump: an image on such an edge, to the
last digit of float32, has different maps in any two implementations. A wrong graph is wrong on most images. Where only one linear layer
follows the explained layer nothing jumps, and all maps count."""
_BATCH = 8
_RANKS = (-1, -2)


def measure(network: ImageNetwork, model: Model, images: Sequence[npt.NDArray[np.uint8]], source: str) -> Parity:
    """Compare the exported file with the network it came from.

    Args:
        network: in eval mode, on the CPU.
        model: the exported file, opened.
        images: inputs, uint8 `[H, W, 3]` each.
        source: origin of the images, for the record.
    """
    logits_difference, agreed = 0.0, 0
    outputs = [output for output in model.description.maps if output.in_graph]
    quick = [output for output in outputs if output.method not in NEEDS_ABLATION]
    costly = [output for output in outputs if output.method in NEEDS_ABLATION]
    differences: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    largest: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    layers = [layer.name for layer in model.description.layers]
    autograd = Autograd(network, layers)

    def compare(batch: npt.NDArray[np.uint8], answer: Answer, compared: Sequence[MapOutput]) -> None:
        assert answer.classes is not None
        for name, values in autograd.maps(torch.from_numpy(batch), torch.from_numpy(answer.classes), compared).items():
            answered = answer.maps[name].astype(np.float64)
            outside = np.maximum(values.lowest.numpy() - answered, answered - values.highest.numpy()).clip(min=0)
            differences[name].append(outside.max((-2, -1)).ravel())
            largest[name].append(np.maximum(np.abs(values.values.numpy()).max((-2, -1)), SHARE_OF_TERMS * values.terms.numpy()).ravel())

    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        answer = model.run(batch, _RANKS, [output.name for output in quick])
        expected = autograd.logits(torch.from_numpy(batch)).numpy().astype(np.float64)
        scale = max(1.0, float(np.abs(expected).max()) / LARGE_LOGIT)
        logits_difference = max(logits_difference, float(np.abs(answer.logits - expected).max()) / scale)
        agreed += _agreeing(expected, answer.logits)
        if quick:
            compare(batch, answer, quick)
    if costly:
        first = np.stack(images[:1])
        compare(first, model.run(first, _RANKS[:1], [output.name for output in costly]), costly)
    smooth = len(layers) == 1 and isinstance(network, Network) and is_pooled_linear(network, *resolve_layers(network, layers))
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
    """Check measured differences.

    Raises:
        ParityError: a difference exceeds its tolerance.
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
    """Count the rows whose first class is the same, or tied with it in PyTorch's logits to within a hundredth of the tolerance."""
    rows = np.arange(len(expected))
    behind = expected.max(1) - expected[rows, answered.argmax(1)]
    return int((behind <= LOGITS_TOLERANCE / 100 * np.maximum(1, np.abs(expected).max(1) / LARGE_LOGIT)).sum())


def _relative(differences: npt.NDArray[np.float64], largest: npt.NDArray[np.float64], share: float) -> float:
    """Return the largest relative difference among the nearest `share` of the maps, each relative to its own largest value.

    A map of almost zeros, which hold rounding errors only, is measured against a thousandth of the largest value of all maps.
    """
    floor = max(largest.max(initial=0.0) * 1e-3, np.finfo(np.float32).tiny)
    relative = np.sort(differences / np.maximum(largest, floor))
    return float(relative[: math.ceil(share * len(relative))].max(initial=0.0))
