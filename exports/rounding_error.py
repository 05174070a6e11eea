"""Estimates of the effect of rounding on a map, from the size of the terms in its sum and from positions at a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tlcli.exports.trace.map_methods import FORMULAS, CamInputs, gradient_shares

_AT_THE_THRESHOLD = 1e-5
"""Expected difference between two float32 implementations of a network, relative to the channel's largest activation."""


@dataclass(frozen=True)
class Expected:
    """Expected maps of a method, with their rounding bounds.

    values: maps, `[N, K, h, w]`.
    lowest, highest: bounds of the values that allow for positions at a threshold; equal to `values` for methods without a threshold.
    terms: `[N, K]`, the maximum over the positions of the sum of the terms' absolute values. If the terms cancel, as those of HiRes-CAM do
        before a scale-invariant norm, the map is small compared with this value, and a map that is zero up to rounding consists of
        rounding errors only.
    """

    values: Tensor
    lowest: Tensor
    highest: Tensor
    terms: Tensor


def expect(method: str, inputs: CamInputs) -> Expected:
    """Compute the maps of a method with their rounding bounds."""
    values = FORMULAS[method](inputs)
    lowest, highest = _fem_bounds(inputs) if method == "fem" else (values, values)
    return Expected(values, lowest, highest, _TERMS[method](inputs).amax((-2, -1)))


def _weighted(weights: Tensor, inputs: CamInputs) -> Tensor:
    """Compute `sum_k |w_k A_k|` for weights `[N, K, c]`."""
    return torch.einsum("nkc,nchw->nkhw", weights.abs(), inputs.activations.abs())


def _everywhere(inputs: CamInputs) -> Tensor:
    """Compute `sum_k |g_k A_k|` at each position."""
    return (inputs.gradients.abs() * inputs.activations.abs()[:, None]).sum(2)


def _of_means(inputs: CamInputs) -> Tensor:
    """Compute the terms of Grad-CAM: `sum_k mean(|g_k|) |A_k|`."""
    return _weighted(inputs.gradients.abs().mean((-2, -1)), inputs)


def _of_plus_plus(inputs: CamInputs) -> Tensor:
    """Compute the terms of Grad-CAM++, whose weights are sums of `alpha relu(g)` over the positions."""
    positions = inputs.activations.shape[-2] * inputs.activations.shape[-1]
    return _weighted(gradient_shares(inputs).abs().mean((-2, -1)) * positions, inputs)


def _of_xgradcam(inputs: CamInputs) -> Tensor:
    """Compute the terms of XGrad-CAM, whose weights are quotients of sums: `sum(|g_k A_k|) / |sum(A_k)|`."""
    totals = inputs.activations.sum((-2, -1)).abs()[:, None]
    products = (inputs.gradients.abs() * inputs.activations.abs()[:, None]).sum((-2, -1))
    return _weighted(torch.where(totals == 0, 0.0, products / torch.where(totals == 0, 1.0, totals)), inputs)


def _of_ablation(inputs: CamInputs) -> Tensor:
    """Compute the terms of Ablation-CAM with its own weights, `|y - y without channel k| / |y|`.

    They do not cover the digits that the subtraction loses, for which the parity check has a separate tolerance.
    """
    assert inputs.ablated is not None
    scores = inputs.scores[..., None].abs()
    return _weighted(
        torch.where(scores == 0, 0.0, (inputs.scores[..., None] - inputs.ablated).abs() / torch.where(scores == 0, 1.0, scores)),
        inputs,
    )


def _of_cam(inputs: CamInputs) -> Tensor:
    assert inputs.class_weights is not None
    return _weighted(inputs.class_weights, inputs)


def _of_finercam(inputs: CamInputs) -> Tensor:
    assert inputs.difference is not None
    return _of_means(inputs.difference)


def _of_reciprocam(inputs: CamInputs) -> Tensor:
    """Return the size of the scores, with and without masks: rounding errors of a network grow with its scores."""
    assert inputs.masked is not None
    return torch.maximum(inputs.masked.abs(), inputs.scores.abs()[..., None, None])


def _of_legrad(inputs: CamInputs) -> Tensor:
    """Compute the mean of the gradients' absolute values, before they are rectified."""
    assert inputs.attention is not None
    return inputs.attention.to_map(torch.stack([gradients.abs().mean((2, 3)) for gradients in inputs.attention.gradients]).mean(0))


_TERMS: dict[str, Callable[[CamInputs], Tensor]] = {
    "cam": _of_cam,
    "gradcam": _of_means,
    "gradcam_plus_plus": _of_plus_plus,
    "xgradcam": _of_xgradcam,
    "hirescam": _everywhere,
    "gradcam_elementwise": _everywhere,
    "layercam": _everywhere,
    "fem": lambda inputs: _fem_bounds(inputs)[1],
    "ablationcam": _of_ablation,
    "finercam": _of_finercam,
    "reciprocam": _of_reciprocam,
    "rollout": FORMULAS["rollout"],
    "legrad": _of_legrad,
}


def _fem_bounds(inputs: CamInputs) -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds of FEM's maps, computed with positions near the threshold excluded and included."""
    activations = inputs.activations
    centred = activations - activations.mean((-2, -1), keepdim=True)
    beyond = centred - 2 * centred.square().mean((-2, -1), keepdim=True).sqrt()
    slack = _AT_THE_THRESHOLD * activations.abs().amax((-2, -1), keepdim=True)
    fewest, most = ((beyond > margin).to(activations.dtype).mean((-2, -1))[..., None, None] * activations for margin in (slack, -slack))
    shape = (-1, inputs.scores.shape[1], -1, -1)
    lowest, highest = torch.minimum(fewest, most).sum(1, keepdim=True), torch.maximum(fewest, most).sum(1, keepdim=True)
    return torch.relu(lowest).expand(shape), torch.relu(highest).expand(shape)
