"""What a run found out: a row an epoch, and the final figures of its best network."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.training.metrics.calibration import Calibration, calibration

Stage = Literal["head", "full"]

_TOP = 5


class EpochRow(NamedTuple):
    """One line of `metrics.csv`.

    stage: `head` trains the head on frozen features, `full` all layers. epoch: from 1, over both stages.
    lr: the head's highest in the epoch. Losses: mean cross-entropy in nats, without label smoothing.
    train_loss, train_top1: over the epoch's batches as they were trained on. seconds: of the epoch, validation included.
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
    """One class of a part.

    count: images of it. precision, recall, f1: in [0, 1]; precision is None if it was never predicted, recall if it has no images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


class Scores(BaseModel):
    """How a network did on a part.

    top1: share of right answers, in [0, 1]. top5: of those with the right class among the first five, where there are more classes.
    loss: mean cross-entropy, nats. macro_f1: the mean F1 of the classes that have images.
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
    """`results.json`.

    best_epoch, best_stage: the epoch whose network was kept (`model_selection`), and the stage it belongs to: after one of `head`
        the backbone's weights are those it began with. best_stage is None in files of earlier versions.
    stopped: why training ended before its last epoch, or None.
    seconds: what each stage took. images: how many each part has. left_out: images that could not be read.
    network_output: the network's logits for a fixed input, see `fingerprint`; None in runs from before it was recorded.
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
        """The final figures, by name: `val_top1`, `val_loss`, and the same of the test part if there is one."""
        parts = {"val": self.val, "test": self.test}
        return {f"{name}_{figure}": getattr(part, figure) for name, part in parts.items() if part for figure in ("top1", "loss")}


def _share(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None


def loss_and_top1(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and the share of right answers, of logits `[n, C]` and labels `[n]`."""
    return float(functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def score(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Scores:
    """All figures of a part.

    Args:
        logits: `[n, C]`.
        labels: int64 `[n]`.
        classes: C names.
    """
    loss, top1 = loss_and_top1(logits, labels)
    count = len(classes)
    confusion = torch.bincount(labels * count + logits.argmax(1), minlength=count**2).reshape(count, count).cpu().numpy()
    right, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    confidence, first = logits.softmax(1).max(1)
    of_class = tuple(
        ClassScores(
            label=label,
            count=int(actual[index]),
            precision=_share(right[index], predicted[index]),
            recall=_share(right[index], actual[index]),
            f1=_share(2 * right[index], actual[index] + predicted[index]),
        )
        for index, label in enumerate(classes)
    )
    return Scores(
        count=len(labels),
        top1=top1,
        top5=float((logits.topk(_TOP, 1).indices == labels[:, None]).any(1).float().mean()) if count > _TOP else None,
        loss=loss,
        macro_f1=float(np.mean([one.f1 for one in of_class if one.count])),
        calibration=calibration(confidence.cpu().numpy(), (first == labels).cpu().numpy()),
        classes=of_class,
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
    )
