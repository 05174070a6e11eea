"""The map methods that live in the graph, each one small function of the same evidence.

A new method is a function here, its name in `contract.methods`, and a row in `IN_GRAPH`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What a map is made of, for N pictures and K classes each.

    activations: A, `[N, c, h, w]`.
    gradients: dy/dA of each class's logit y, `[N, K, c, h, w]`.
    class_weights: `[N, K, c]`, the rows of the last layer's weight, where the head is one linear layer on the
        spatial mean; else None.
    """

    activations: Tensor
    gradients: Tensor
    class_weights: Tensor | None


def cam(evidence: Evidence) -> Tensor:
    """`sum_k W[class, k] A_k`, not rectified (Zhou et al. 2016, arXiv:1512.04150, eq. 2). `[N, K, h, w]`."""
    if evidence.class_weights is None:
        raise ValueError("CAM is defined for a linear layer on the spatial mean only")
    return _weighted_sum(evidence.class_weights, evidence.activations)


def gradcam(evidence: Evidence) -> Tensor:
    """`relu(sum_k mean(dy/dA_k) A_k)` (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2). `[N, K, h, w]`."""
    return torch.relu(_weighted_sum(evidence.gradients.mean((-2, -1)), evidence.activations))


def _weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """`[N, K, c]` and `[N, c, h, w]` to `[N, K, h, w]`."""
    return torch.einsum("nkc,nchw->nkhw", weights, activations)


IN_GRAPH: dict[str, Callable[[Evidence], Tensor]] = {"cam": cam, "gradcam": gradcam}

NEEDS_CLASS_WEIGHTS = frozenset({"cam"})
"""Methods for heads that are one linear layer on the spatial mean."""
