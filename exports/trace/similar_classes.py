"""Similar classes, with which Finer-CAM compares a class (Zhang et al. 2025, arXiv:2501.11309).

The explained score is `y_c - STRENGTH * mean_d(y_d)`, where d are the classes whose logits are closest to that of c. The number of similar
classes and the strength are the paper's. The authors' code weights the similar classes by their probabilities (`FinerWeightedTarget` in
pytorch-grad-cam); the paper, and this module, take their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIMILAR = 3
"""Number of similar classes. A network of fewer classes compares with all others."""

STRENGTH = 0.6
"""Weight of the similar classes' mean score, gamma in the paper. At 0, Finer-CAM is Grad-CAM."""


def similar_classes(logits: Tensor, classes: Tensor, skip_last: bool = False) -> Tensor:
    """Return the classes whose logits are closest to those of the explained classes, closest first, int64 `[N, K, S]`.

    Args:
        logits: `[N, C]`.
        classes: explained classes, int64 `[N, K]`.
        skip_last: replace the last similar class with the next one, if there is one.
    """
    count = logits.shape[1]
    own = classes[..., None]
    distances = (logits[:, None] - logits.gather(1, classes)[..., None]).abs()
    distances = torch.where(torch.arange(count) == own, torch.inf, distances)
    similar = min(SIMILAR, count - 1)
    if skip_last and similar < count - 1:
        closest = distances.topk(similar + 1, dim=2, largest=False).indices
        return torch.cat([closest[..., : similar - 1], closest[..., similar:]], 2)
    return distances.topk(similar, dim=2, largest=False).indices


def difference(own: Tensor, similar: Tensor) -> Tensor:
    """Return Finer-CAM's score, or its derivative: `own - STRENGTH * mean(similar)`.

    Args:
        own: values of the explained classes, `[N, K, ...]`.
        similar: values of their similar classes, `[N, K, S, ...]`.
    """
    return own - STRENGTH * similar.mean(2)
