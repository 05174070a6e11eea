"""Map methods that are computed in the graph. Each method is one small function of the same inputs.

To add a method, write its function here, and add it to `FORMULAS` and to `tlcli.contract.maps.method_names`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AttentionInputs:
    """Attention between the tokens of a layer, in all blocks in execution order.

    weights: attention weights of each block, from each token (a row) to all tokens, `[N, heads, t, t]`.
    gradients: gradients of each class's score y with respect to these weights, `[N, K, heads, t, t]`; empty without LeGrad.
    rows: tokens of the last block on which the scores depend: the class token, or those with a position.
    prefix: number of tokens without a position, which come first.
    height, width: size of the map of the other tokens.
    """

    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    rows: tuple[int, ...]
    prefix: int
    height: int
    width: int

    def to_map(self, values: Tensor) -> Tensor:
        """Return the map `[N, K, h, w]` in values of all tokens, `[N, K, t]`."""
        return values[..., self.prefix :].reshape(*values.shape[:2], self.height, self.width)


@dataclass(frozen=True)
class CamInputs:
    """Inputs of the map methods, for N images and K classes per image.

    activations: activations A of the layer, `[N, c, h, w]`.
    gradients: gradients dy/dA of each class's score y, `[N, K, c, h, w]`, or `[N, K, c, 1, 1]` if they are the same at all positions.
    mean_gradients: means of the gradients over the positions, `[N, K, c]`.
    class_weights: rows of the last layer's weight for the classes, `[N, K, c]`; None unless the head is one linear layer on the spatial
        mean.
    scores: scores y of the classes, `[N, K]`.
    ablated: scores y with each channel set to zero in turn, `[N, K, c]`; None without Ablation-CAM.
    difference: the same inputs with the gradients of Finer-CAM's score, see `tlcli.exports.trace.similar_classes`; None without Finer-CAM.
    masked: scores y with the activations masked around each position in turn, `[N, K, h, w]`; None without Recipro-CAM.
    attention: attention of all blocks; None for networks of other kinds.
    """

    activations: Tensor
    gradients: Tensor
    mean_gradients: Tensor
    class_weights: Tensor | None
    scores: Tensor
    ablated: Tensor | None = None
    difference: CamInputs | None = None
    masked: Tensor | None = None
    attention: AttentionInputs | None = None

    @property
    def uniform(self) -> bool:
        """True if the gradients are the same at all positions and are given as `[N, K, c, 1, 1]`."""
        return tuple(self.gradients.shape[-2:]) == (1, 1)


def cam(inputs: CamInputs) -> Tensor:
    """Compute CAM, `sum_k W[class, k] A_k`, without rectification (Zhou et al. 2016, arXiv:1512.04150, eq. 2).

    Returns:
        Maps `[N, K, h, w]`, as from all functions of `FORMULAS`.
    """
    if inputs.class_weights is None:
        raise ValueError("CAM is defined only for a head that is one linear layer on the spatial mean")
    return _weighted_sum(inputs.class_weights, inputs.activations)


def gradcam(inputs: CamInputs) -> Tensor:
    """Compute Grad-CAM, `relu(sum_k mean(dy/dA_k) A_k)` (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2)."""
    return torch.relu(_weighted_sum(inputs.mean_gradients, inputs.activations))


def gradcam_plus_plus(inputs: CamInputs) -> Tensor:
    """Compute Grad-CAM++, `relu(sum_k w_k A_k)` with `w_k = sum(alpha relu(g))` and `alpha = g^2 / (2 g^2 + sum(A_k) g^3)`
    (Chattopadhay et al. 2018, arXiv:1710.11063, eqs. 5, 10 and 19).

    Only positions with g > 0 contribute. For these, `alpha g` is computed as `g / (2 + sum(A_k) g)`, which does not underflow as the powers
    would.
    """
    return torch.relu(_weighted_sum(_sum(gradient_shares(inputs), inputs.activations), inputs.activations))


def gradient_shares(inputs: CamInputs) -> Tensor:
    """Compute the factor `alpha relu(g)` of Grad-CAM++, with the shape of the gradients."""
    positive = torch.relu(inputs.gradients)
    below = 2 + inputs.activations.sum((-2, -1), keepdim=True)[:, None] * positive
    return torch.where(below == 0, 0.0, positive / torch.where(below == 0, 1.0, below))


def xgradcam(inputs: CamInputs) -> Tensor:
    """Compute XGrad-CAM, `relu(sum_k w_k A_k)` with `w_k = sum(g_k A_k) / sum(A_k)` (Fu et al. 2020, arXiv:2008.02312, eq. 8).

    A channel whose activations sum to 0 has a weight of 0.
    """
    totals = inputs.activations.sum((-2, -1))[:, None]
    if inputs.uniform:
        weights = inputs.mean_gradients
    else:
        weights = (inputs.gradients * inputs.activations[:, None]).sum((-2, -1)) / torch.where(totals == 0, 1.0, totals)
    return torch.relu(_weighted_sum(torch.where(totals == 0, 0.0, weights), inputs.activations))


def hirescam(inputs: CamInputs) -> Tensor:
    """Compute HiRes-CAM, `relu(sum_k g_k A_k)` at each position (Draelos and Carin 2020, arXiv:2011.08891)."""
    if inputs.uniform:
        return gradcam(inputs)
    return torch.relu((inputs.gradients * inputs.activations[:, None]).sum(2))


def gradcam_elementwise(inputs: CamInputs) -> Tensor:
    """Compute element-wise Grad-CAM, `sum_k relu(g_k A_k)` at each position."""
    if not inputs.uniform:
        return torch.relu(inputs.gradients * inputs.activations[:, None]).sum(2)
    gradients, activations = inputs.mean_gradients, inputs.activations  # a product is positive if both factors have the same sign
    both = _weighted_sum(torch.relu(gradients), torch.relu(activations))
    return both + _weighted_sum(torch.relu(-gradients), torch.relu(-activations))


def layercam(inputs: CamInputs) -> Tensor:
    """Compute Layer-CAM, `relu(sum_k relu(g_k) A_k)` at each position (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943,
    eqs. 5 and 6).
    """
    positive = torch.relu(inputs.gradients)
    if inputs.uniform:
        return torch.relu(_weighted_sum(positive.flatten(2), inputs.activations))
    return torch.relu((positive * inputs.activations[:, None]).sum(2))


def fem(inputs: CamInputs) -> Tensor:
    """Compute FEM, `relu(sum_k w_k A_k)`, where w_k is the fraction of positions with `A_k > mean + 2 sigma` (Ahmed Asif Fuad et al. 2020,
    doi:10.1109/IPTA50016.2020.9286629). The map is the same for every class.
    """
    activations = inputs.activations
    centred = activations - activations.mean((-2, -1), keepdim=True)
    positions = activations.shape[-2] * activations.shape[-1]
    sigma = torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / positions**0.5
    weights = (centred > 2 * sigma).to(activations.dtype).mean((-2, -1))
    return torch.relu(_weighted_sum(weights[:, None], activations)).expand(-1, inputs.scores.shape[1], -1, -1)


def ablationcam(inputs: CamInputs) -> Tensor:
    """Compute Ablation-CAM, `relu(sum_k w_k A_k)` with `w_k = (y - y without channel k) / |y|` (Ramaswamy 2020,
    doi:10.1109/WACV45572.2020.9093360, eqs. 4 and 5).

    The weights are 0 if y is 0. Unlike in the paper, the divisor is the absolute value of y, because a negative score would invert the map.
    """
    if inputs.ablated is None:
        raise ValueError("Ablation-CAM needs the scores without each channel: pass `ablated`")
    scores = inputs.scores[..., None]
    weights = (scores - inputs.ablated) / torch.where(scores == 0, 1.0, scores.abs())
    return torch.relu(_weighted_sum(torch.where(scores == 0, 0.0, weights), inputs.activations))


def finercam(inputs: CamInputs) -> Tensor:
    """Compute Finer-CAM, Grad-CAM of the difference between a class's score and those of similar classes (Zhang et al. 2025,
    arXiv:2501.11309).
    """
    if inputs.difference is None:
        raise ValueError("Finer-CAM needs the gradients of the difference between classes: pass `difference`")
    return gradcam(inputs.difference)


def reciprocam(inputs: CamInputs) -> Tensor:
    """Compute Recipro-CAM, the score with the activations masked around each position, without rectification (Byun and Lee 2022,
    arXiv:2209.14074; with tokens, it is ViT-Recipro-CAM, arXiv:2310.02588).
    """
    if inputs.masked is None:
        raise ValueError("Recipro-CAM needs the scores of the masked activations: pass `masked`")
    return inputs.masked


def rollout(inputs: CamInputs) -> Tensor:
    """Compute attention rollout, the product over all blocks of `(w + 1) / 2` (Abnar and Zuidema 2020, arXiv:2005.00928).

    Here w is the mean of the attention weights over the heads, and 1 the identity matrix.

    The map is the mean of the rows on which the scores depend: that of the class token, or those of the positions. It is the same for
    every class.
    """
    attention = _attention(inputs)
    tokens = attention.weights[0].shape[-1]
    row = torch.tensor([1 / len(attention.rows) if token in attention.rows else 0.0 for token in range(tokens)])
    reached = row.expand(attention.weights[0].shape[0], 1, -1)
    for weights in reversed(attention.weights):
        reached = (reached + reached @ weights.mean(1)) / 2
    return attention.to_map(reached).expand(-1, inputs.scores.shape[1], -1, -1)


def legrad(inputs: CamInputs) -> Tensor:
    """Compute LeGrad, the mean over blocks, heads and rows of `relu(dy/dw)`, with w the attention weights (Bousselham et al. 2024,
    arXiv:2404.03214).

    Unlike in the paper, y is the score of the network for all blocks. The paper takes a score for each block, by feeding the block's tokens
    to the classifier, which was not trained on them.
    """
    attention = _attention(inputs)
    of_blocks = [torch.relu(gradients).mean((2, 3)) for gradients in attention.gradients]
    return attention.to_map(torch.stack(of_blocks).mean(0))


def _attention(inputs: CamInputs) -> AttentionInputs:
    if inputs.attention is None:
        raise ValueError("the method needs attention between the layer's tokens in every block: pass `attention`")
    return inputs.attention


def position_masks(positions: Tensor, height: int, width: int) -> Tensor:
    """Return the masks of Recipro-CAM, `[R, h, w]`: at each of R positions, a 3x3 Gaussian with the weights 1/4, 1/8 and 1/16.

    Args:
        positions: int64 `[R]`, each `row * w + column`.
        height, width: size of the masks.
    """
    row_length = torch.scalar_tensor(width, dtype=torch.int64)  # ONNX has no remainder of a division by a symbolic size
    distances = [
        (torch.arange(size)[None] - places[:, None]).abs().to(torch.float32)
        for size, places in ((height, positions // row_length), (width, positions % row_length))
    ]
    rows, columns = (torch.relu(2 - distance) / 4 for distance in distances)  # 1/2, and 1/4 beside it
    return rows[:, :, None] * columns[:, None]


def neighbourhood_sums(activations: Tensor) -> Tensor:
    """Return the sums over all positions of activations `[N, c, h, w]` under each mask of `position_masks`, `[N, c, h, w]`."""
    kernel = position_masks(torch.tensor([4]), 3, 3)
    return functional.conv2d(activations.flatten(0, 1)[:, None], kernel[:, None], padding=1).reshape(activations.shape)


def _weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """Compute the weighted sum over the channels of activations `[N, c, h, w]` with weights `[N, K, c]`. The result is `[N, K, h, w]`."""
    return torch.einsum("nkc,nchw->nkhw", weights, activations)


def _sum(values: Tensor, activations: Tensor) -> Tensor:
    """Sum values over the positions of `activations`.

    Args:
        values: `[N, K, c, h, w]`, or `[N, K, c, 1, 1]` if they are the same at all positions.
        activations: `[N, c, h, w]`.

    Returns:
        Sums `[N, K, c]`.
    """
    positions = activations.shape[-2] * activations.shape[-1]
    return values.mean((-2, -1)) * positions


FORMULAS: dict[str, Callable[[CamInputs], Tensor]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam_elementwise": gradcam_elementwise,
    "layercam": layercam,
    "fem": fem,
    "ablationcam": ablationcam,
    "finercam": finercam,
    "reciprocam": reciprocam,
    "rollout": rollout,
    "legrad": legrad,
}

NEEDS_CLASS_WEIGHTS = frozenset({"cam"})
"""Methods that require a head of one linear layer on the spatial mean."""

NEEDS_ABLATION = frozenset({"ablationcam"})
"""Methods that run the part of the network after the layer once per channel."""

NEEDS_DIFFERENCE = frozenset({"finercam"})
"""Methods that need the gradients of the difference between a class and similar ones."""

NEEDS_MASKING = frozenset({"reciprocam"})
"""Methods that run the part of the network after the layer once per position."""

NEEDS_ATTENTION_GRADIENTS = frozenset({"legrad"})
"""Methods that need the gradients of the attention weights."""

MAX_MASKED_POSITIONS = 1024
"""Largest number of positions of a layer for which Recipro-CAM is exported unless it is selected by name."""
