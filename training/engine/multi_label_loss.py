"""Training loss for several labels per image: binary cross-entropy or the asymmetric loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_FOCUS = 4.0
"""Exponent of the asymmetric loss for classes that an image does not have; that of its classes is 0 (Ridnik et al. 2021, section 3.1)."""
_MARGIN = 0.05
"""Probability below which a class that an image does not have costs nothing in the asymmetric loss."""


@dataclass(frozen=True, eq=False)
class MultiLabelObjective:
    r"""Binary cross-entropy or the asymmetric loss, as the mean over the classes of an image.

    With $p = \sigma(z)$ and the target $q$ of a class, binary cross-entropy is $-w q \log p - (1 - q) \log(1 - p)$. The asymmetric loss is
    $-q \log p - (1 - q) p_m^4 \log(1 - p_m)$ with $p_m = \max(p - 0.05, 0)$ (Ridnik et al. 2021, arXiv:2009.14119, eq. 4 to 7): the many
    classes that an image does not have and that are easy by now do not outweigh the few that it has.

    asymmetric: True for the asymmetric loss. label_smoothing: targets are drawn toward 1/2 by this factor.
    positive_weights: weight w of each class for its images, float `[C]`; None for 1.
    """

    asymmetric: bool = False
    label_smoothing: float = 0.0
    positive_weights: Tensor | None = None

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the weighted loss in nats, summed over images.

        Args:
            logits: class logits, `[N, C]`.
            targets: 1 for each class of an image and 0 for the others, or values between if images are mixed, `[N, C]`.
            weights: weights of the images, float `[N]`; None if all weigh the same.
        """
        z = logits if logits.dtype == torch.float64 else logits.float()
        q = (1 - self.label_smoothing) * targets.to(z.dtype) + self.label_smoothing / 2
        if self.asymmetric:
            shifted = (z.sigmoid() - _MARGIN).clamp_min(0)
            losses = -q * functional.logsigmoid(z) - (1 - q) * shifted**_FOCUS * torch.log1p(-shifted)
        else:
            losses = functional.binary_cross_entropy_with_logits(z, q, pos_weight=self.positive_weights, reduction="none")
        of_images = losses.mean(1)
        return (of_images if weights is None else of_images * weights).sum()

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the total weight of the images. Divide `total` by it to get the weighted mean loss."""
        return torch.tensor(float(len(targets)), device=targets.device) if weights is None else weights.sum()

    def unweighted(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy without smoothing and weights, as the mean over classes and the sum over images."""
        return MultiLabelObjective().total(logits, targets)


def balanced_positive_weights(labels: npt.NDArray[np.int64]) -> Tensor:
    """Return `(n - n_c) / n_c` for labels `[n, C]`, with which the images of a class weigh as much as all others, float `[C]`."""
    counts = labels.sum(0)
    return torch.tensor((len(labels) - counts).clip(min=1) / counts.clip(min=1), dtype=torch.get_default_dtype())
