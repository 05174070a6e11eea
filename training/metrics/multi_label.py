"""Metrics for several labels per image: average precision, thresholds that maximise F1, and the scores of a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # reading results needs no PyTorch
    from torch import Tensor

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DEFAULT_THRESHOLD = 0.5
"""Threshold of a class without images, to which none can be fitted."""


class LabelScores(BaseModel):
    """Scores of one class in a part with several labels per image.

    count: number of images of the class.
    average_precision: area under the precision-recall curve, in [0, 1]; None if the class has no images.
    threshold: score from which on the class is assigned.
    precision: precision at the threshold, in [0, 1]; None if the class was never assigned.
    recall: recall at the threshold, in [0, 1]; None if the class has no images.
    f1: F1 score at the threshold, in [0, 1]; None if the class was never assigned and has no images.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    label: str
    count: int
    average_precision: float | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None


class MultiLabelScores(BaseModel):
    """Scores of a network on a part with several labels per image.

    mean_ap: mean of the average precision (mAP) over the classes that have images.
    loss: mean binary cross-entropy over images and classes, in nats.
    macro_f1: mean F1 score at the thresholds over the classes that have images. micro_f1: F1 score of all labels together.
    exact_match: fraction of the images of which all labels are right.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Literal["multi-label"]
    count: int
    mean_ap: float
    loss: float
    macro_f1: float
    micro_f1: float
    exact_match: float
    classes: tuple[LabelScores, ...]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Threshold of each class."""
        return tuple(scores.threshold for scores in self.classes)


def average_precision(labels: Labels, scores: Floats) -> float | None:
    """Return the average precision `sum_k (R_k - R_{k-1}) P_k` of one class; None if no image has the label.

    Precision P and recall R are those at each distinct score, so that the order of images with equal scores has no effect.

    Args:
        labels: 1 for images of the class, 0 for others, `[n]`.
        scores: score of each image, `[n]`.
    """
    hits, assigned, _ = _cumulated(labels, scores)
    total = int(labels.sum())
    if total == 0:
        return None
    return float((np.diff(hits, prepend=0) / total * (hits / assigned)).sum())


def mean_average_precision(labels: Labels, scores: Floats) -> float:
    """Return the mean of the average precision over the classes that have images, 0 without any; labels and scores are `[n, C]`."""
    values = [average_precision(labels[:, index], scores[:, index]) for index in range(labels.shape[1])]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def best_threshold(labels: Labels, scores: Floats) -> float:
    """Return the threshold that maximises the F1 score of one class, for which images with at least that score are assigned.

    It is halfway between two distinct scores, so that rounding does not change the assignment. Of several, the one with the widest gap
    between the two is chosen.

    Args:
        labels: 1 for images of the class, 0 for others, `[n]`.
        scores: score of each image, `[n]`, in [0, 1].
    """
    if not labels.any():
        return DEFAULT_THRESHOLD
    hits, assigned, distinct = _cumulated(labels, scores)
    f1 = 2 * hits / (assigned + labels.sum())
    below = np.append(distinct[1:], 0.0)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = best[np.argmax((distinct - below)[best])]
    return float((distinct[chosen] + below[chosen]) / 2)


def _cumulated(labels: Labels, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return, at each distinct score from the highest, the images of the class and all images with at least that score, and the score."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    return np.cumsum(labels[order])[ends].astype(np.float64), (ends + 1).astype(np.float64), ranked[ends]


def score_labels(logits: Tensor, labels: Tensor, classes: Sequence[str], thresholds: Sequence[float] | None = None) -> MultiLabelScores:
    """Compute all scores of a part.

    Args:
        logits: class logits, `[n, C]`.
        labels: 1 for each class of an image and 0 for the others, int64 `[n, C]`.
        classes: names of the C classes.
        thresholds: threshold of each class; None fits them to this part.
    """
    from torch.nn import functional

    truth: Labels = labels.cpu().numpy()
    scores: Floats = logits.double().sigmoid().cpu().numpy()
    chosen = (
        np.array([best_threshold(truth[:, index], scores[:, index]) for index in range(len(classes))])
        if thresholds is None
        else np.array(thresholds)
    )
    assigned = scores >= chosen
    right, actual, predicted = (assigned & (truth == 1)).sum(0), truth.sum(0), assigned.sum(0)
    rows = tuple(
        LabelScores(
            label=label,
            count=int(actual[index]),
            average_precision=average_precision(truth[:, index], scores[:, index]),
            threshold=float(chosen[index]),
            precision=_ratio(right[index], predicted[index]),
            recall=_ratio(right[index], actual[index]),
            f1=_ratio(2 * right[index], actual[index] + predicted[index]),
        )
        for index, label in enumerate(classes)
    )
    return MultiLabelScores(
        task="multi-label",
        count=len(truth),
        mean_ap=mean_average_precision(truth, scores),
        loss=float(functional.binary_cross_entropy_with_logits(logits.double(), labels.to(logits.device).double())),
        macro_f1=float(np.mean([row.f1 for row in rows if row.count] or [0.0])),
        micro_f1=_ratio(2 * right.sum(), actual.sum() + predicted.sum()) or 0.0,
        exact_match=float((assigned == (truth == 1)).all(1).mean()),
        classes=rows,
    )


def _ratio(count: np.integer, total: np.integer) -> float | None:
    return float(count / total) if total else None
