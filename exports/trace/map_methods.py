"""The map methods that live in the graph, each one small function of the same evidence.

A new method is a function here, a row in `FORMULAS`, and its name in `tlcli.contract.maps.method_names`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What a map is made of, for N images and K classes each.

    activations: A, `[N, c, h, w]`.
    gradients: dy/dA of each class's score y, `[N, K, c, h, w]`, or as `[N, K, c, 1, 1]` where it is the same at all positions.
    mean_gradients: their means over the positions, `[N, K, c]`.
    class_weights: `[N, K, c]`, the rows of the last layer's weight, where the head is one linear layer on the spatial mean.
    scores: y, `[N, K]`.
    ablated: `[N, K, c]`, y with each channel in turn set to zero.
    """

    activations: Tensor
    gradients: Tensor
    mean_gradients: Tensor
    class_weights: Tensor | None
    scores: Tensor
    ablated: Tensor | None

    @property
    def uniform(self) -> bool:
        """Whether the gradients are given once for all positions."""
        return tuple(self.gradients.shape[-2:]) == (1, 1)


def cam(evidence: Evidence) -> Tensor:
    """`sum_k W[class, k] A_k`, not rectified (Zhou et al. 2016, arXiv:1512.04150, eq. 2). `[N, K, h, w]`."""
    if evidence.class_weights is None:
        raise ValueError("CAM is defined for a linear layer on the spatial mean only")
    return _weighted_sum(evidence.class_weights, evidence.activations)


def gradcam(evidence: Evidence) -> Tensor:
    """`relu(sum_k mean(dy/dA_k) A_k)` (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2)."""
    return torch.relu(_weighted_sum(evidence.mean_gradients, evidence.activations))


def gradcam_plus_plus(evidence: Evidence) -> Tensor:
    """`relu(sum_k w_k A_k)`, `w_k = sum(alpha relu(g))`, `alpha = g^2 / (2 g^2 + sum(A_k) g^3)` (Chattopadhay et al. 2018,
    arXiv:1710.11063, eqs. 5, 10 and 19).

    For g > 0, the only ones that count, `alpha g = g / (2 + sum(A_k) g)`, which does not underflow as the powers would.
    """
    return torch.relu(_weighted_sum(_sum(gradient_shares(evidence), evidence.activations), evidence.activations))


def gradient_shares(evidence: Evidence) -> Tensor:
    """Grad-CAM++'s `alpha relu(g)`, in the shape of the gradients."""
    positive = torch.relu(evidence.gradients)
    below = 2 + evidence.activations.sum((-2, -1), keepdim=True)[:, None] * positive
    return torch.where(below == 0, 0.0, positive / torch.where(below == 0, 1.0, below))


def xgradcam(evidence: Evidence) -> Tensor:
    """`relu(sum_k w_k A_k)`, `w_k = sum(g_k A_k) / sum(A_k)` (Fu et al. 2020, arXiv:2008.02312, eq. 8); 0 where the sum is."""
    totals = evidence.activations.sum((-2, -1))[:, None]
    if evidence.uniform:
        weights = evidence.mean_gradients
    else:
        weights = (evidence.gradients * evidence.activations[:, None]).sum((-2, -1)) / torch.where(totals == 0, 1.0, totals)
    return torch.relu(_weighted_sum(torch.where(totals == 0, 0.0, weights), evidence.activations))


def hirescam(evidence: Evidence) -> Tensor:
    """`relu(sum_k g_k A_k)`, position by position (Draelos and Carin 2020, arXiv:2011.08891)."""
    if evidence.uniform:
        return gradcam(evidence)
    return torch.relu((evidence.gradients * evidence.activations[:, None]).sum(2))


def gradcam_elementwise(evidence: Evidence) -> Tensor:
    """`sum_k relu(g_k A_k)`, position by position."""
    if not evidence.uniform:
        return torch.relu(evidence.gradients * evidence.activations[:, None]).sum(2)
    gradients, activations = evidence.mean_gradients, evidence.activations  # a product is positive where both are, or neither
    both = _weighted_sum(torch.relu(gradients), torch.relu(activations))
    return both + _weighted_sum(torch.relu(-gradients), torch.relu(-activations))


def layercam(evidence: Evidence) -> Tensor:
    """`relu(sum_k relu(g_k) A_k)`, position by position (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eqs. 5 and 6)."""
    positive = torch.relu(evidence.gradients)
    if evidence.uniform:
        return torch.relu(_weighted_sum(positive.flatten(2), evidence.activations))
    return torch.relu((positive * evidence.activations[:, None]).sum(2))


def fem(evidence: Evidence) -> Tensor:
    """`relu(sum_k w_k A_k)`, w_k the share of positions where `A_k > mean + 2 sigma` (Ahmed Asif Fuad et al. 2020,
    doi:10.1109/IPTA50016.2020.9286629). The same for every class.
    """
    activations = evidence.activations
    centred = activations - activations.mean((-2, -1), keepdim=True)
    positions = activations.shape[-2] * activations.shape[-1]
    sigma = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / positions**0.5
    weights = (centred > 2 * sigma).to(activations.dtype).mean((-2, -1))
    return torch.relu(_weighted_sum(weights[:, None], activations)).expand(-1, evidence.scores.shape[1], -1, -1)


def ablationcam(evidence: Evidence) -> Tensor:
    """`relu(sum_k w_k A_k)`, `w_k = (y - y without channel k) / |y|` (Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360, eqs. 4
    and 5); 0 where y is.

    By y's absolute value: with a negative score the paper's quotient would turn the map around.
    """
    if evidence.ablated is None:
        raise ValueError("Ablation-CAM needs the scores without each channel")
    scores = evidence.scores[..., None]
    weights = (scores - evidence.ablated) / torch.where(scores == 0, 1.0, scores.abs())
    return torch.relu(_weighted_sum(torch.where(scores == 0, 0.0, weights), evidence.activations))


def _weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """`[N, K, c]` and `[N, c, h, w]` to `[N, K, h, w]`."""
    return torch.einsum("nkc,nchw->nkhw", weights, activations)


def _sum(values: Tensor, activations: Tensor) -> Tensor:
    """Over the positions of `activations`, at which `values` `[N, K, c, h, w]` may be given once for all: `[N, K, c]`."""
    positions = activations.shape[-2] * activations.shape[-1]
    return values.mean((-2, -1)) * positions


FORMULAS: dict[str, Callable[[Evidence], Tensor]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam_elementwise": gradcam_elementwise,
    "layercam": layercam,
    "fem": fem,
    "ablationcam": ablationcam,
}

NEEDS_CLASS_WEIGHTS = frozenset({"cam"})
"""Methods for heads that are one linear layer on the spatial mean."""

NEEDS_ABLATION = frozenset({"ablationcam"})
"""Methods that run what follows the layer again for each channel."""
