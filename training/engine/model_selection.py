"""Model selection: keep the lowest validation loss among networks whose validation accuracy is equal within noise.

Accuracy on a few hundred images is a coarse number: a lead of one image is chance. So two networks whose top-1 differs by
no more than one standard error (Breiman et al. 1984, section 3.4.3, the one-standard-error rule) are compared by their loss,
which depends on every score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol


class Figures(Protocol):
    """Validation figures of one network. val_top1: in [0, 1]. val_loss: nats."""

    @property
    def val_top1(self) -> float: ...  # noqa: D102

    @property
    def val_loss(self) -> float: ...  # noqa: D102


RULE = "the lowest validation loss among those whose validation top-1 is within one standard error of the highest"


def standard_error(top1: float, count: int) -> float:
    """Return the standard error of an accuracy measured on `count` images.

    One right and one wrong prediction are added, so that it is not 0 at 100 % (Laplace's rule of succession).
    """
    share = (top1 * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / (count + 2))


def is_better(new: Figures, kept: Figures | None, highest: float, count: int) -> bool:
    """Return True if `new` replaces the network kept so far.

    Args:
        new: figures of the latest network.
        kept: figures of the network kept so far; None before the first.
        highest: highest top-1 before `new`.
        count: number of validation images.
    """
    if kept is None:
        return True
    highest = max(highest, new.val_top1)
    bound = highest - standard_error(highest, count)
    if new.val_top1 < bound:
        return False
    return kept.val_top1 < bound or (new.val_loss, -new.val_top1) < (kept.val_loss, -kept.val_top1)


def select(figures: Iterable[Figures], count: int) -> int:
    """Return the index of the network kept after all of them, in this order; it depends on the figures alone."""
    chosen, kept, highest = -1, None, 0.0
    for index, new in enumerate(figures):
        if is_better(new, kept, highest, count):
            chosen, kept = index, new
        highest = max(highest, new.val_top1)
    return chosen


def describe_kept(epoch: int, stage: str | None, mode: object) -> str:
    """Describe the epoch that was kept, and if it is one of the head's stage, what that means for the backbone."""
    if mode != "full" or stage is None:
        return f"epoch {epoch}"
    if stage == "head":
        return (
            f"epoch {epoch} of the stage that trains the head alone: no epoch that trained all layers was better,"
            " so the backbone's weights are unchanged"
        )
    return f"epoch {epoch} of the stage that trains all layers"
