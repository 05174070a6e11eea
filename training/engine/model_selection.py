"""Model selection: keep the lowest validation loss among networks whose validation accuracies differ only by noise.

On a few hundred images, accuracy is a coarse measure, and a lead of one image is chance. Networks whose top-1 accuracy is within one
standard error of the highest (the one-standard-error rule, Breiman et al. 1984, section 3.4.3) are therefore compared by their loss,
which depends on every score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol


class Figures(Protocol):
    """Validation metrics of one network.

    val_top1: top-1 accuracy in [0, 1]. val_loss: mean loss in nats.
    """

    @property
    def val_top1(self) -> float: ...  # noqa: D102

    @property
    def val_loss(self) -> float: ...  # noqa: D102


MULTI_LABEL_RULE = "the highest validation mean average precision"

RULE = "the lowest validation loss among those whose validation top-1 is within one standard error of the highest"


def standard_error(top1: float, count: int) -> float:
    """Return the standard error of an accuracy measured on `count` images.

    One correct and one wrong prediction are added (Laplace's rule of succession), so that the error is not 0 at an accuracy of 100 %.
    """
    share = (top1 * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / (count + 2))


def is_better(new: Figures, kept: Figures | None, highest: float, count: int) -> bool:
    """Return True if the network with the metrics `new` should replace the network kept so far.

    Args:
        new: metrics of the latest network.
        kept: metrics of the network kept so far; None before the first network.
        highest: highest top-1 accuracy before `new`.
        count: number of validation images.
    """
    if kept is None:
        return True
    highest = max(highest, new.val_top1)
    bound = highest - standard_error(highest, count)
    if new.val_top1 < bound:
        return False
    return kept.val_top1 < bound or (new.val_loss, -new.val_top1) < (kept.val_loss, -kept.val_top1)


class MeanApFigures(Protocol):
    """Validation metrics of one network for several labels per image.

    val_mean_ap: mean average precision in [0, 1]. val_loss: mean loss in nats.
    """

    @property
    def val_mean_ap(self) -> float | None: ...  # noqa: D102

    @property
    def val_loss(self) -> float: ...  # noqa: D102


def has_higher_mean_ap(new: MeanApFigures, kept: MeanApFigures | None) -> bool:
    """Return True if a network has a higher mean average precision than the one kept so far, or the same and a lower loss."""
    return kept is None or (new.val_mean_ap or 0.0, -new.val_loss) > (kept.val_mean_ap or 0.0, -kept.val_loss)


def rule_of(task: object) -> str:
    """Return the rule that selects an epoch of a run, in words."""
    return MULTI_LABEL_RULE if task == "multi-label" else RULE


def select(figures: Iterable[Figures], count: int) -> int:
    """Apply `is_better` to a sequence of networks and return the index of the one that is kept. Depends only on the metrics."""
    chosen, kept, highest = -1, None, 0.0
    for index, new in enumerate(figures):
        if is_better(new, kept, highest, count):
            chosen, kept = index, new
        highest = max(highest, new.val_top1)
    return chosen


def describe_kept(epoch: int, stage: str | None, mode: object) -> str:
    """Describe the kept epoch in words. If it belongs to the head stage, add that the backbone is unchanged."""
    if mode != "full" or stage is None:
        return f"epoch {epoch}"
    if stage == "head":
        return (
            f"epoch {epoch} of the stage that trains the head alone: no epoch that trained all layers was better,"
            " so the backbone's weights are unchanged"
        )
    return f"epoch {epoch} of the stage that trains all layers"
