"""Results of a run: one row per epoch, and the final scores of the best network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.training.metrics.calibration import Calibration, calibration

if TYPE_CHECKING:  # reading results needs no PyTorch
    from torch import Tensor

Stage = Literal["head", "full"]

_TOP = 5


class EpochRow(NamedTuple):
    """One row of `metrics.csv`.

    stage: `head` for training the head on frozen features, `full` for training all layers.
    epoch: number of the epoch, from 1, counted over both stages.
    lr: highest learning rate of the head in the epoch.
    train_loss, train_top1: mean over the epoch's batches, augmented as in training.
    train_loss, val_loss: mean cross-entropy in nats, without label smoothing.
    seconds: duration of the epoch, validation included.
    """

    stage: Stage
    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


class ClassScores(BaseModel):
    """Scores of one class in a part.

    count: number of images of the class.
    precision: in [0, 1]; None if the class was never predicted.
    recall: in [0, 1]; None if the class has no images.
    f1: in [0, 1]; None if the class was never predicted and has no images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


class Scores(BaseModel):
    """Scores of a network on a part.

    top1: share of correct predictions, in [0, 1].
    top5: share of images with the true class among the five highest scores; None with five classes or fewer.
    loss: mean cross-entropy, in nats. macro_f1: mean F1 of the classes that have images.
    confusion: counts, `confusion[true][predicted]`, in the order of the classes.
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


class Results(BaseModel):
    """Contents of `results.json`.

    best_epoch, best_stage: epoch whose network was kept (`model_selection`), and its stage. If that is `head`, the backbone's
        weights are unchanged. best_stage is None in files of earlier versions.
    stopped: reason for stopping before the last epoch, or None.
    seconds: duration of each phase. images: number of images in each part. left_out: number of images that could not be read.
    network_output: logits of the network for a fixed input, see `fingerprint`; None in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    best_epoch: int
    best_stage: Stage | None = None
    stopped: str | None
    val: Scores
    test: Scores | None
    seconds: dict[str, float]
    images: dict[str, int] = Field(validation_alias=IMAGES_FIELD)
    left_out: int
    network_output: tuple[float, ...] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Return the final metrics by name: `val_top1`, `val_loss`, and the same for the test part if there is one."""
        parts = {"val": self.val, "test": self.test}
        return {f"{name}_{metric}": getattr(part, metric) for name, part in parts.items() if part for metric in ("top1", "loss")}


def _ratio(count: np.integer, total: np.integer) -> float | None:
    return float(count / total) if total else None


def loss_and_top1(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the top-1 accuracy of logits `[n, C]` for labels `[n]`."""
    from torch.nn import functional

    return float(functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def score(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Scores:
    """Compute all scores of a part.

    Args:
        logits: `[n, C]`.
        labels: int64 `[n]`.
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
