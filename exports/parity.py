"""The export's check of itself: the file, run as the server runs it, against PyTorch on real images."""

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
"""Absolute, for logits up to `LARGE_LOGIT`; relative to it for larger ones, where float32 itself has no more digits."""
LARGE_LOGIT = 100.0
MAPS_TOLERANCE = 1e-4
"""Relative to the map's largest value."""
SHARE_OF_TERMS = 0.1
"""A map whose terms cancel to less than this share of their size is measured against that share: a tenth of the terms' size leaves 1e-5 of
it, which is what float32 sums of gradients and activations are exact to."""
MAPS_TOLERANCES = {"xgradcam": 1e-3, "ablationcam": 1e-3, "gradcam_plus_plus": 1e-2}
"""Of methods that divide by what may be small, or subtract what is nearly equal: float32 has no more digits of them."""
MAPS_THAT_COUNT = 0.75
"""The derivatives of ReLU and of max pooling jump. An image that lies on such an edge, to the last digit of float32, has another map in
any two implementations; a graph that is wrong is wrong on most images. Where one linear layer follows nothing jumps, and all count."""
_BATCH = 8
_RANKS = (-1, -2)


def measure(network: ImageNetwork, model: Model, images: Sequence[npt.NDArray[np.uint8]], source: str) -> Parity:
    """Compare the exported file with the network it came from.

    Args:
        network: in eval mode, on the CPU.
        model: the exported file.
        images: inputs, uint8 `[H, W, 3]` each.
        source: what the images are, for the record.
    """
    logits_difference, agreed = 0.0, 0
    outputs = [output for output in model.description.maps if output.in_graph]
    quick = [output for output in outputs if output.method not in NEEDS_ABLATION]
    costly = [output for output in outputs if output.method in NEEDS_ABLATION]
    differences: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    largest: dict[str, list[npt.NDArray[np.float64]]] = {output.name: [] for output in outputs}
    layers = [layer.name for layer in model.description.layers]
    autograd = Autograd(network, layers)

    def compare(batch: npt.NDArray[np.uint8], answer: Answer, wanted: Sequence[MapOutput]) -> None:
        assert answer.classes is not None
        for name, values in autograd.maps(torch.from_numpy(batch), torch.from_numpy(answer.classes), wanted).items():
            found = answer.maps[name].astype(np.float64)
            outside = np.maximum(values.lowest.numpy() - found, found - values.highest.numpy()).clip(min=0)
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
    """Raises: ParityError: a difference over its tolerance; the message names the worst."""
    problems = []
    if not parity.logits <= LOGITS_TOLERANCE:
        problems.append(f"logits differ by {parity.logits:.2g}, at most {LOGITS_TOLERANCE:g} is allowed")
    if parity.top1_agreement < 1:
        problems.append(f"the first class agrees on {parity.top1_agreement:.1%} of the images only")
    for name, difference in parity.maps.items():
        allowed = MAPS_TOLERANCES.get(name.partition("@")[0], MAPS_TOLERANCE)
        if not difference <= allowed:
            problems.append(f"{name} differs by {difference:.2g} of its largest value, at most {allowed:g} is allowed")
    if problems:
        raise ParityError(f"the exported graph does not answer as PyTorch does on {parity.images} images: {'; '.join(problems)}")


def _agreeing(expected: npt.NDArray[np.float64], answered: npt.NDArray[np.float32]) -> int:
    """Rows whose first class is the same, or tied with it in PyTorch's own logits to a hundredth of the tolerance."""
    rows = np.arange(len(expected))
    behind = expected.max(1) - expected[rows, answered.argmax(1)]
    return int((behind <= LOGITS_TOLERANCE / 100 * np.maximum(1, np.abs(expected).max(1) / LARGE_LOGIT)).sum())


def _relative(differences: npt.NDArray[np.float64], largest: npt.NDArray[np.float64], share: float) -> float:
    """How far the maps are apart, each relative to its own largest value: the largest of the nearest `share` of them.

    A map without evidence (all but zero) is measured against a thousandth of the largest of all, since rounding alone would fill it.
    """
    floor = max(largest.max(initial=0.0) * 1e-3, np.finfo(np.float32).tiny)
    relative = np.sort(differences / np.maximum(largest, floor))
    return float(relative[: math.ceil(share * len(relative))].max(initial=0.0))
