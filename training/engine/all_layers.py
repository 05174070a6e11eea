"""Training all layers: augmented images, smaller rates toward the stem, label smoothing, batch norms that learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tlcli.contract.errors import SettingsError
from tlcli.training.data.dataloader import batch_count, image_batches
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.engine.amp import Precision
from tlcli.training.engine.loss import objective_of
from tlcli.training.engine.mixup import mixing
from tlcli.training.engine.optimizer import layered_optimizer
from tlcli.training.engine.stage import Batches, Best, Position, Stage, run_stage
from tlcli.training.engine.step import Way
from tlcli.training.engine.sync_batchnorm import sync_norms
from tlcli.training.engine.unfreezing import GradualUnfreezing
from tlcli.training.metrics.scores import EpochRow, loss_and_top1
from tlcli.training.models.batch_norms import folded_norms
from tlcli.training.models.network import Network
from tlcli.training.runtime.distributed import DistributedContext
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.plan import Plan


@dataclass(frozen=True, eq=False)
class Listeners:
    """Who is told what, while all layers train.

    progress: of each epoch. epoch: its row, and whether it is the best so far. step: its number, and its mean loss.
    keep: where the training is. say: what a user must know.
    """

    progress: ProgressFactory = silent
    epoch: Callable[[EpochRow, bool], None] = lambda row, is_best: None
    step: Callable[[int, float], None] = lambda number, loss: None
    keep: Callable[[Position], None] = lambda position: None
    say: Callable[[str], None] = lambda line: None


def train_all(
    network: Network,
    dataset: Dataset,
    plan: Plan,
    seed: int,
    best: Best,
    listeners: Listeners,
    processes: DistributedContext = DistributedContext(),  # noqa: B008  # immutable
    begin: Position | None = None,
) -> None:
    """Train every layer of `network`.

    Args:
        network: on the device to train on; ends with the weights of the best epoch.
        dataset: its training and validation parts.
        plan: what it says of all layers.
        seed: of the order of the images, of their augmentation, and of what is drawn in each step.
        best: the network as it is, with what was reached so far; told of every epoch.
        listeners: see there.
        processes: that do this together.
        begin: where it is, if it is gone on with.

    Raises:
        ImageError: an image that cannot be read any more.
        SettingsError: see `run_stage`; or there are fewer images in a batch than processes.
    """
    first = len(best.rows) + 1 - (0 if begin is None else begin.epochs)
    stage = stage_of_all_layers(network, dataset, plan, seed, listeners, processes, first)
    run_stage(stage, best, listeners.epoch, begin, listeners.keep)


def stage_of_all_layers(
    network: Network,
    dataset: Dataset,
    plan: Plan,
    seed: int,
    listeners: Listeners,
    processes: DistributedContext = DistributedContext(),  # noqa: B008  # immutable
    first: int = 1,
) -> Stage:
    """What `train_all` runs.

    Args:
        network, dataset, plan, seed, listeners, processes: see there.
        first: the number of its first epoch in the run.

    Raises:
        SettingsError: there are fewer images in a batch than processes.
    """
    device = next(network.parameters()).device
    preprocessing = network.config.preprocessing
    network.to(memory_format=torch.channels_last)  # as the images come: convolutions need not turn either
    if processes.world > 1:
        sync_norms(network, device)
    batch, step_size = len(dataset.train), plan.config.batch_size * plan.config.accumulate
    steps = batch_count(batch, step_size)
    smallest = smallest_part(batch, plan)
    if smallest < processes.world:
        raise SettingsError(f"{processes.world} processes share batches of {smallest} images: give a larger --batch-size")

    def batches(epoch: int) -> Batches:
        description = f"Epoch {first + epoch} of {first + plan.full_epochs - 1}"
        with listeners.progress(description, batch) as advance:
            done = 0
            for number, (images, labels) in enumerate(
                image_batches(
                    dataset.train,
                    preprocessing,
                    batch_size=step_size,
                    workers=plan.workers,
                    augmentation=plan.augmentation,
                    seed=seed,
                    view=epoch,
                    shuffled=True,
                    share=(processes.rank, processes.world),
                    micro_batch_size=plan.config.batch_size,
                ),
                start=1,
            ):
                yield network.normalise(images.to(device)), labels.to(device)
                now = number * batch // steps
                advance(now - done)
                done = now

    def evaluate() -> tuple[float, float]:
        logits = classify_images(network, dataset.val, plan, processes=processes)
        return loss_and_top1(logits, torch.from_numpy(dataset.val.labels))

    classes = len(dataset.classes)
    optimizer = layered_optimizer(network, plan.full_lr, plan.weight_decay, plan.layer_decay, plan.config.optimizer)
    return Stage(
        name="full",
        model=network,
        optimizer=optimizer,
        batches=batches,
        steps=steps,
        evaluate=evaluate,
        epochs=plan.full_epochs,
        warm_up=plan.warm_up,
        schedule=plan.config.schedule,
        kept_in_eval=[] if plan.from_scratch else folded_norms(network),
        way=Way(
            objective=objective_of(plan.full_label_smoothing, plan, dataset.train.labels, classes, device),
            mixing=mixing(plan.config.mixup, plan.config.cutmix, classes),
            part_size=plan.config.batch_size,
            average=plan.config.ema,
            precision=Precision(device, plan.config.amp),
            compiled=plan.config.compile,
            processes=processes,
            seed=seed,
        ),
        patience=plan.config.patience,
        unfreezing=GradualUnfreezing(optimizer, plan.full_epochs) if plan.config.gradual_unfreezing else None,
        on_step=listeners.step,
        say=listeners.say,
    )


@torch.inference_mode()
def classify_images(
    network: Network,
    part: Part,
    plan: Plan,
    advance: Callable[[int], None] = lambda _: None,
    processes: DistributedContext = DistributedContext(),  # noqa: B008  # immutable
) -> Tensor:
    """Logits `[n, C]` of a part's images, on the CPU, by a network in eval mode. `advance` is told of images.

    Raises:
        ImageError: an image that cannot be read any more.
    """
    device = next(network.parameters()).device
    share = part.take(range(processes.rank, len(part), processes.world)) if processes.world > 1 else part
    logits = [torch.empty(0, network.config.num_classes)]
    loaded = image_batches(share, network.config.preprocessing, batch_size=plan.config.batch_size, workers=plan.workers)
    for images, _ in loaded if len(share) else ():
        logits.append(network(network.normalise(images.to(device))).float().cpu())
        advance(len(images))
    return processes.all_gather(torch.cat(logits), len(part))


def smallest_part(images: int, plan: Plan) -> int:
    """Return the smallest number of `images` training images that the network sees at a time, over all processes."""
    steps = batch_count(images, plan.config.batch_size * plan.config.accumulate)
    sizes = {images // steps, -(-images // steps)}
    return min(size // batch_count(size, plan.config.batch_size) for size in sizes)
