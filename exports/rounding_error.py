"""Effect of rounding on a map: the size of the terms that it sums, and positions at a threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tlcli.exports.trace.map_methods import FORMULAS, CamInputs, gradient_shares

_AT_THE_THRESHOLD = 1e-5
"""Relative to the channel's largest activation: what two implementations of a network may differ by, in float32."""


@dataclass(frozen=True)
class Expected:
    """A method's maps with what rounding leaves open of them.

    values: `[N, K, h, w]`.
    lowest, highest: the same, with positions at a threshold decided one way or the other; equal to `values` for methods without one.
    terms: `[N, K]`, the largest sum of the terms' absolute values at a position. Where the terms cancel, as HiRes-CAM's do before a norm
        that is invariant to scale, the map is small beside it, and is nothing but rounding where it is zero.
    """

    values: Tensor
    lowest: Tensor
    highest: Tensor
    terms: Tensor


def expect(method: str, evidence: CamInputs) -> Expected:
    """Compute a method's maps, and what rounding leaves open of them."""
    values = FORMULAS[method](evidence)
    lowest, highest = _fem_bounds(evidence) if method == "fem" else (values, values)
    return Expected(values, lowest, highest, _TERMS[method](evidence).amax((-2, -1)))


def _weighted(weights: Tensor, evidence: CamInputs) -> Tensor:
    """`sum_k |w_k A_k|`, for weights `[N, K, c]`."""
    return torch.einsum("nkc,nchw->nkhw", weights.abs(), evidence.activations.abs())


def _everywhere(evidence: CamInputs) -> Tensor:
    """`sum_k |g_k A_k|`, position by position."""
    return (evidence.gradients.abs() * evidence.activations.abs()[:, None]).sum(2)


def _of_means(evidence: CamInputs) -> Tensor:
    return _weighted(evidence.gradients.abs().mean((-2, -1)), evidence)


def _of_plus_plus(evidence: CamInputs) -> Tensor:
    """Its weights are sums of shares of the positive gradients."""
    positions = evidence.activations.shape[-2] * evidence.activations.shape[-1]
    return _weighted(gradient_shares(evidence).abs().mean((-2, -1)) * positions, evidence)


def _of_xgradcam(evidence: CamInputs) -> Tensor:
    """Its weights are quotients of sums: `sum(|g_k A_k|) / |sum(A_k)|`."""
    totals = evidence.activations.sum((-2, -1)).abs()[:, None]
    products = (evidence.gradients.abs() * evidence.activations.abs()[:, None]).sum((-2, -1))
    return _weighted(torch.where(totals == 0, 0.0, products / torch.where(totals == 0, 1.0, totals)), evidence)


def _of_ablation(evidence: CamInputs) -> Tensor:
    """With its own weights, `|y - y without channel k| / |y|`: the check has a tolerance of its own for what the difference loses."""
    assert evidence.ablated is not None
    scores = evidence.scores[..., None].abs()
    return _weighted(
        torch.where(scores == 0, 0.0, (evidence.scores[..., None] - evidence.ablated).abs() / torch.where(scores == 0, 1.0, scores)),
        evidence,
    )


def _of_cam(evidence: CamInputs) -> Tensor:
    assert evidence.class_weights is not None
    return _weighted(evidence.class_weights, evidence)


_TERMS: dict[str, Callable[[CamInputs], Tensor]] = {
    "cam": _of_cam,
    "gradcam": _of_means,
    "gradcam_plus_plus": _of_plus_plus,
    "xgradcam": _of_xgradcam,
    "hirescam": _everywhere,
    "gradcam_elementwise": _everywhere,
    "layercam": _everywhere,
    "fem": lambda evidence: _fem_bounds(evidence)[1],
    "ablationcam": _of_ablation,
}


def _fem_bounds(evidence: CamInputs) -> tuple[Tensor, Tensor]:
    """FEM's maps where positions within rounding of the threshold do not count, or do, whichever makes the map smaller, or larger."""
    activations = evidence.activations
    centred = activations - activations.mean((-2, -1), keepdim=True)
    beyond = centred - 2 * centred.square().mean((-2, -1), keepdim=True).sqrt()
    slack = _AT_THE_THRESHOLD * activations.abs().amax((-2, -1), keepdim=True)
    fewest, most = ((beyond > margin).to(activations.dtype).mean((-2, -1))[..., None, None] * activations for margin in (slack, -slack))
    shape = (-1, evidence.scores.shape[1], -1, -1)
    lowest, highest = torch.minimum(fewest, most).sum(1, keepdim=True), torch.maximum(fewest, most).sum(1, keepdim=True)
    return torch.relu(lowest).expand(shape), torch.relu(highest).expand(shape)
