"""Messages that a run logs about its setup and its epochs."""

from __future__ import annotations

from collections.abc import Iterator

from tlcli.contract.files.display_name import printable
from tlcli.contract.images.find_images import describe
from tlcli.training.data.dataset import Dataset
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.step import Log
from tlcli.training.metrics.scores import EpochRow
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
    yield f"{dataset.spec}: {len(dataset.classes)} classes ({classes}); images: {counts}"
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
        self._log(
            f"epoch {row.epoch}: training loss {row.train_loss:.4f}, top-1 {row.train_top1:.2%}; validation loss {row.val_loss:.4f},"
            f" top-1 {row.val_top1:.2%}{' (best)' if is_best else ''}; {row.seconds:.1f} s"
        )
