"""Results of a training run: metrics of each epoch, and the final scores of the best network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.training.metrics.calibration import Calibration, calibration
from tlcli.training.metrics.multi_label import MultiLabelScores, mean_average_precision, score_labels

if TYPE_CHECKING:  # reading results needs no PyTorch
    from torch import Tensor

Stage = Literal["head", "full"]

_TOP = 5


class EpochRow(NamedTuple):
    """Metrics of one epoch: a row of `metrics.csv`.

    stage: `head` if the head is trained on frozen features, `full` if all layers are trained.
    epoch: number of the epoch, starting at 1 and counted over both stages.
    lr: highest learning rate of the head in the epoch.
    train_loss, train_top1: means over the training batches of the epoch, with augmentation as in training.
    train_loss, val_loss: mean cross-entropy in nats, without label smoothing; with several labels per image, mean binary cross-entropy.
    train_top1, val_top1: NaN with several labels per image.
    seconds: duration of the epoch, including validation.
    val_mean_ap: mean average precision on the validation part, with several labels per image; None otherwise.
    """

    stage: Stage
    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float
    val_mean_ap: float | None = None


class ClassScores(BaseModel):
    """Scores of one class in a part.

    count: number of images of the class.
    precision: precision in [0, 1]; None if the class was never predicted.
    recall: recall in [0, 1]; None if the class has no images.
    f1: F1 score in [0, 1]; None if the class was never predicted and has no images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


class Scores(BaseModel):
    """Scores of a network on a part.

    top1: fraction of correct predictions, in [0, 1].
    top5: fraction of images whose true class has one of the five highest scores; None if there are five classes or fewer.
    loss: mean cross-entropy, in nats. macro_f1: mean F1 score over the classes that have images.
    confusion: confusion matrix of counts, `confusion[true][predicted]`, in class order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    top1: float
    top5: float | None
    loss: float
    macro_f1: float
    calibration: Calibration
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def macro_recall(self) -> float | None:
        """Mean recall over the classes that have images, also called balanced accuracy; None if no recall was recorded."""
        recalls = [scores.recall for scores in self.classes if scores.recall is not None]
        return float(np.mean(recalls)) if recalls else None


PartScores = Scores | MultiLabelScores
"""Scores of a part, for one label per image or for several."""


class Validation(NamedTuple):
    """Metrics of a network on the validation part after an epoch; see `EpochRow`."""

    loss: float
    top1: float
    mean_ap: float | None = None


class Results(BaseModel):
    """Contents of `results.json`.

    best_epoch, best_stage: epoch selected by `model_selection`, and its stage. If the stage is `head`, the backbone's weights are
        unchanged. `best_stage` is None in files written by earlier versions.
    stopped: reason why training stopped before the last epoch; None if it ran to the end.
    seconds: duration of each phase. images: number of images in each part. left_out: number of images that could not be read.
    network_output: logits of the network for a fixed input, see `fingerprint`; None in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    best_epoch: int
    best_stage: Stage | None = None
    stopped: str | None
    val: PartScores
    test: PartScores | None
    seconds: dict[str, float]
    images: dict[str, int] = Field(validation_alias=IMAGES_FIELD)
    left_out: int
    network_output: tuple[float, ...] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name: `val_top1`, `val_loss`, and if there is a test part, `test_top1` and `test_loss`.

        With several labels per image, `val_mean_ap` and `val_macro_f1` replace `val_top1`.
        """
        parts = {"val": self.val, "test": self.test}
        return {f"{name}_{metric}": getattr(part, metric) for name, part in parts.items() if part for metric in _final(part)}


def _final(part: PartScores) -> tuple[str, ...]:
    return ("mean_ap", "macro_f1", "loss") if isinstance(part, MultiLabelScores) else ("top1", "loss")


def _ratio(count: np.integer, total: np.integer) -> float | None:
    return float(count / total) if total else None


def validate(logits: Tensor, labels: Tensor) -> Validation:
    """Return the metrics of an epoch for logits `[n, C]` and labels `[n]`, or `[n, C]` with several labels per image."""
    if labels.ndim == 1:
        return Validation(*loss_and_top1(logits, labels))
    from torch.nn import functional

    loss = float(functional.binary_cross_entropy_with_logits(logits.double(), labels.double()))
    scores = logits.double().sigmoid().cpu().numpy()
    return Validation(loss, math.nan, mean_average_precision(labels.cpu().numpy(), scores))


def loss_and_top1(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the top-1 accuracy for logits `[n, C]` and labels `[n]`."""
    from torch.nn import functional

    return float(functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def score_parts(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], classes: tuple[str, ...]) -> dict[str, PartScores]:
    """Compute the scores of each part. With several labels per image, the thresholds of the part `val` apply to all.

    Args:
        logits: class logits by part, `[n, C]` each.
        labels: class indices by part, int64 `[n]`, or with several labels per image `[n, C]`.
        classes: names of the C classes.
    """
    if labels["val"].ndim == 1:
        return {name: score(logits[name], labels[name], classes) for name in logits}
    val = score_labels(logits["val"], labels["val"], classes)
    return {name: val if name == "val" else score_labels(logits[name], labels[name], classes, val.thresholds) for name in logits}


def score(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Scores:
    """Compute all scores of a part.

    Args:
        logits: class logits, `[n, C]`.
        labels: class indices, int64 `[n]`.
        classes: names of the C classes.
    """
    import torch

    loss, top1 = loss_and_top1(logits, labels)
    count = len(classes)
    confusion = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).reshape(count, count).cpu().numpy()
    right, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    confidence, first = logits.softmax(1).max(1)
    class_scores = tuple(
        ClassScores(
            label=label,
            count=int(actual[index]),
            precision=_ratio(right[index], predicted[index]),
            recall=_ratio(right[index], actual[index]),
            f1=_ratio(2 * right[index], actual[index] + predicted[index]),
        )
        for index, label in enumerate(classes)
    )
    return Scores(
        count=len(labels),
        top1=top1,
        top5=float((logits.topk(_TOP, 1).indices == labels[:, None]).any(1).float().mean()) if count > _TOP else None,
        loss=loss,
        macro_f1=float(np.mean([scores.f1 for scores in class_scores if scores.count])),
        calibration=calibration(confidence.cpu().numpy(), (first == labels).cpu().numpy()),
        classes=class_scores,
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
    )
