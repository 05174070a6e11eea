"""Messages that a run logs about its setup and its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tlcli.contract.files.display_name import printable
from tlcli.contract.images.find_images import describe
from tlcli.training.data.dataset import Dataset
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.step import Log
from tlcli.training.metrics.headline import why_macro_recall
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.scores import EpochRow, PartScores
from tlcli.training.models.network import NetworkConfig
from tlcli.training.settings.config import FinetuneConfig


def setup_messages(config: FinetuneConfig, network: NetworkConfig, dataset: Dataset) -> Iterator[str]:
    """Yield one line each for the network, the data set, and anything unusual about them."""
    if config.from_run is not None:
        weights = f"weights of the run {config.from_run}"
    elif config.weights == "none":
        weights = "random weights: nothing is pretrained (--weights none)"
    else:
        weights = "official weights" if config.weights == "pretrained" else f"weights of {config.weights}"
    frozen = ", all but the head frozen" if config.mode == "feature-extraction" else ""
    if config.weights == "none" and config.mode == "feature-extraction":
        yield (
            "warning: --weights none with all but the head frozen: the head learns from random features; add --mode full,"
            " which trains all layers, or give weights with --weights FILE"
        )
    size = network.preprocessing
    yield f"{config.backbone}: {weights}{frozen}; input {size.height}x{size.width}, head {config.head}"
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    classes = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
    task = ", several labels per image" if dataset.task == "multi-label" else ""
    yield f"{dataset.spec}: {len(dataset.classes)} classes ({classes}){task}; images: {counts}"
    if dataset.layout:
        yield f"{dataset.spec}: {dataset.layout}"
    yield from describe(dataset.skipped)
    if dataset.left_out:
        first = dataset.left_out[0]
        count = "1 image" if len(dataset.left_out) == 1 else f"{len(dataset.left_out):,} images"
        yield f"left out: {count} that could not be read, such as {printable(first.name)}: {first.reason}"


class EpochLog(Callback):
    """Callback that logs the metrics of every epoch."""

    def __init__(self, log: Log) -> None:
        """Create a callback that prints lines with `log`."""
        self._log = log

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        """Log the metrics of an epoch in one line."""
        train = f", top-1 {row.train_top1:.2%}" if row.val_mean_ap is None else ""
        self._log(
            f"epoch {row.epoch}: training loss {row.train_loss:.4f}{train}; validation loss {row.val_loss:.4f},"
            f" {metric_of(row)}{' (best)' if is_best else ''}; {row.seconds:.1f} s"
        )


def metric_of(row: EpochRow) -> str:
    """Return the validation metric of an epoch that selects it: top-1, or mAP with several labels per image."""
    return f"top-1 {row.val_top1:.2%}" if row.val_mean_ap is None else f"mAP {row.val_mean_ap:.4f}"


def result_lines(scores: Mapping[str, PartScores], train_counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a line with the final scores of each part, and the reason if macro recall leads.

    Args:
        scores: scores by part.
        train_counts: number of training images by class.
    """
    why = why_macro_recall(train_counts)
    for name, part in scores.items():
        if isinstance(part, MultiLabelScores):
            yield (
                f"{name}: mAP {part.mean_ap:.4f}, macro F1 {part.macro_f1:.4f} at the fitted thresholds, all labels right on"
                f" {part.exact_match:.2%} of {part.count:,} images, loss {part.loss:.4f}"
            )
        else:
            lead = "" if why is None else f"macro recall {part.macro_recall:.2%}, "
            yield f"{name}: {lead}{part.top1:.2%} of {part.count:,} images correct, loss {part.loss:.4f}"
    if why is not None and not any(isinstance(part, MultiLabelScores) for part in scores.values()):
        yield f"macro recall leads, because {why}"
