"""Effect of rounding on a map: the size of the terms that it sums, and positions at a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tlcli.exports.trace.map_methods import FORMULAS, CamInputs, gradient_shares

_AT_THE_THRESHOLD = 1e-5
"""Difference between two float32 implementations of a network, relative to the channel's largest activation."""


@dataclass(frozen=True)
class Expected:
    """Maps of a method, with the bounds that rounding leaves open.

    values: `[N, K, h, w]`.
    lowest, highest: bounds of the values, from positions at a threshold; equal to `values` for methods without a threshold.
    terms: `[N, K]`, the largest sum of the terms' absolute values at a position. Where the terms cancel, as HiRes-CAM's do before a norm
        that is invariant to scale, the map is small compared with it; a map that is zero up to rounding holds rounding errors only.
    """

    values: Tensor
    lowest: Tensor
    highest: Tensor
    terms: Tensor


def expect(method: str, inputs: CamInputs) -> Expected:
    """Compute a method's maps, with the bounds that rounding leaves open."""
    values = FORMULAS[method](inputs)
    lowest, highest = _fem_bounds(inputs) if method == "fem" else (values, values)
    return Expected(values, lowest, highest, _TERMS[method](inputs).amax((-2, -1)))


def _weighted(weights: Tensor, inputs: CamInputs) -> Tensor:
    """Compute `sum_k |w_k A_k|` for weights `[N, K, c]`."""
    return torch.einsum("nkc,nchw->nkhw", weights.abs(), inputs.activations.abs())


def _everywhere(inputs: CamInputs) -> Tensor:
    """Compute `sum_k |g_k A_k|`, position by position."""
    return (inputs.gradients.abs() * inputs.activations.abs()[:, None]).sum(2)


def _of_means(inputs: CamInputs) -> Tensor:
    """Compute the terms of Grad-CAM: `sum_k mean(|g_k|) |A_k|`."""
    return _weighted(inputs.gradients.abs().mean((-2, -1)), inputs)


def _of_plus_plus(inputs: CamInputs) -> Tensor:
    """Compute the terms of Grad-CAM++, whose weights are sums of shares of the positive gradients."""
    positions = inputs.activations.shape[-2] * inputs.activations.shape[-1]
    return _weighted(gradient_shares(inputs).abs().mean((-2, -1)) * positions, inputs)


def _of_xgradcam(inputs: CamInputs) -> Tensor:
    """Compute the terms of XGrad-CAM, whose weights are quotients of sums: `sum(|g_k A_k|) / |sum(A_k)|`."""
    totals = inputs.activations.sum((-2, -1)).abs()[:, None]
    products = (inputs.gradients.abs() * inputs.activations.abs()[:, None]).sum((-2, -1))
    return _weighted(torch.where(totals == 0, 0.0, products / torch.where(totals == 0, 1.0, totals)), inputs)


def _of_ablation(inputs: CamInputs) -> Tensor:
    """Compute the terms of Ablation-CAM with its own weights, `|y - y without channel k| / |y|`.

    The check has a tolerance of its own for the digits that the difference loses.
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
}


def _fem_bounds(inputs: CamInputs) -> tuple[Tensor, Tensor]:
    """Return FEM's lowest and highest maps: positions within rounding of the threshold count in one of them, but not in the other."""
    activations = inputs.activations
    centred = activations - activations.mean((-2, -1), keepdim=True)
    beyond = centred - 2 * centred.square().mean((-2, -1), keepdim=True).sqrt()
    slack = _AT_THE_THRESHOLD * activations.abs().amax((-2, -1), keepdim=True)
    fewest, most = ((beyond > margin).to(activations.dtype).mean((-2, -1))[..., None, None] * activations for margin in (slack, -slack))
    shape = (-1, inputs.scores.shape[1], -1, -1)
    lowest, highest = torch.minimum(fewest, most).sum(1, keepdim=True), torch.maximum(fewest, most).sum(1, keepdim=True)
    return torch.relu(lowest).expand(shape), torch.relu(highest).expand(shape)
