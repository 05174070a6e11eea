"""Map formulas in NumPy and float64, for the export's check. They share no code with the formulas of the graph.

Each function takes activations `[N, 1, c, h, w]` and gradients `[N, K, c, h, w]`, and returns the maps `[N, K, h, w]` with the size of
their terms, which bounds the effect of rounding: a map whose terms cancel is small compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Result = tuple[Doubles, Doubles]


def _sum(weights: Doubles, activations: Doubles) -> Result:
    """Return `sum_k w_k A_k` and `sum_k |w_k A_k|` for weights `[N, K, c]`."""
    terms = weights[..., None, None] * activations
    return terms.sum(2), np.abs(terms).sum(2)


def _rectified(result: Result) -> Result:
    return np.maximum(result[0], 0), result[1]


def _quotient(above: Doubles, below: Doubles) -> Doubles:
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0)


def cam(a: Doubles, g: Doubles) -> Result:
    """Compute CAM: with a head of one linear layer on the mean, the gradient's sum over the positions is the class's weight."""
    return _sum(g.sum((3, 4)), a)


def gradcam(a: Doubles, g: Doubles) -> Result:
    """Compute Grad-CAM."""
    values = _rectified(_sum(g.mean((3, 4)), a))
    return values[0], _sum(np.abs(g).mean((3, 4)), np.abs(a))[0]


def gradcam_plus_plus(a: Doubles, g: Doubles) -> Result:
    """Compute Grad-CAM++ as defined in the paper, with `alpha = g^2 / (2 g^2 + sum(A) g^3)`."""
    alpha = _quotient(g**2, 2 * g**2 + a.sum((3, 4), keepdims=True) * g**3)
    shares = _quotient(np.maximum(g, 0), 2 + a.sum((3, 4), keepdims=True) * np.maximum(g, 0))
    weights = np.where(np.abs(g) > 1e-100, alpha * np.maximum(g, 0), shares).sum((3, 4))
    values, _ = _sum(weights, a)
    return np.maximum(values, 0), _sum(np.abs(shares).sum((3, 4)), np.abs(a))[0]


def xgradcam(a: Doubles, g: Doubles) -> Result:
    """Compute XGrad-CAM."""
    totals = a.sum((3, 4))
    values, _ = _sum(_quotient((g * a).sum((3, 4)), totals), a)
    return np.maximum(values, 0), _sum(_quotient(np.abs(g * a).sum((3, 4)), np.abs(totals)), np.abs(a))[0]


def hirescam(a: Doubles, g: Doubles) -> Result:
    """Compute HiRes-CAM."""
    return np.maximum((g * a).sum(2), 0), np.abs(g * a).sum(2)


def gradcam_elementwise(a: Doubles, g: Doubles) -> Result:
    """Compute element-wise Grad-CAM."""
    return np.maximum(g * a, 0).sum(2), np.abs(g * a).sum(2)


def layercam(a: Doubles, g: Doubles) -> Result:
    """Compute Layer-CAM."""
    return np.maximum((np.maximum(g, 0) * a).sum(2), 0), np.abs(g * a).sum(2)


def fem_bounds(a: Doubles, share: float) -> tuple[Doubles, Doubles]:
    """Compute FEM with positions near its threshold excluded and included.

    Args:
        a: activations, `[N, 1, c, h, w]`.
        share: width of "near", relative to a channel's largest activation.

    Returns:
        Lowest and highest maps, `[N, 1, h, w]`.
    """
    centred = a - a.mean((3, 4), keepdims=True)
    beyond = centred - 2 * np.sqrt((centred**2).mean((3, 4), keepdims=True))
    slack = share * np.abs(a).max((3, 4), keepdims=True)
    first, second = ((beyond > margin).mean((3, 4), keepdims=True) * a for margin in (slack, -slack))
    return np.maximum(np.minimum(first, second).sum(2), 0), np.maximum(np.maximum(first, second).sum(2), 0)


def ablationcam(a: Doubles, scores: Doubles, ablated: Doubles) -> Result:
    """Compute Ablation-CAM from the scores `[N, K]`, and the scores without each channel `[N, K, c]`."""
    weights = _quotient(scores[..., None] - ablated, np.abs(scores)[..., None])
    values, terms = _sum(weights, a)
    return np.maximum(values, 0), terms


FORMULAS: dict[str, Callable[[Doubles, Doubles], Result]] = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam_elementwise": gradcam_elementwise,
    "layercam": layercam,
}


def fuse(maps: Sequence[Doubles]) -> Doubles:
    """Fuse the maps of several layers: the maximum of the maps, each scaled to [0, 1] and enlarged to the largest size."""
    height, width = max(values.shape[-2] for values in maps), max(values.shape[-1] for values in maps)
    enlarged = []
    for values in maps:
        low, high = values.min((-2, -1), keepdims=True), values.max((-2, -1), keepdims=True)
        unit = _quotient(values - low, high - low)
        rows, columns = _interpolation(values.shape[-2], height), _interpolation(values.shape[-1], width)
        enlarged.append(rows @ unit @ columns.T)
    result: Doubles = np.maximum.reduce(enlarged)
    return result


def _interpolation(size: int, enlarged: int) -> Doubles:
    """Return the matrix of bilinear interpolation between pixel centres, `[enlarged, size]`."""
    positions = np.clip((np.arange(enlarged) + 0.5) * size / enlarged - 0.5, 0, size - 1)
    weights: Doubles = np.maximum(0.0, 1 - np.abs(positions[:, None] - np.arange(size)[None]))
    return weights
