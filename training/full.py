"""Training all layers: augmented pictures, smaller rates toward the stem, label smoothing, batch norms that learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.loading import batch_count, picture_batches
from training.network import Network
from training.parts import Dataset, Part
from training.plan import Plan
from training.progress import ProgressFactory
from training.rates import layered_optimizer
from training.results import EpochRow, loss_and_top1
from training.stage import Batches, Best, Stage, run_stage
from training.transforms import augmentation_for


def train_all(
    network: Network,
    dataset: Dataset,
    plan: Plan,
    seed: int,
    best: Best,
    progress: ProgressFactory,
    on_epoch: Callable[[EpochRow, bool], None],
) -> None:
    """Train every layer of `network`.

    Args:
        network: on the device to train on; ends with the weights of the best epoch.
        dataset: its training and validation parts.
        plan: its `full_*`, `from_scratch`, `weight_decay`, `layer_decay`, `label_smoothing`, `warm_up`, `batch_size` and `workers` count.
        seed: of the order of the pictures, and of their augmentation.
        best: the network as it is, with what the head's stage reached, if there was one; told of every epoch.
        progress: told of each epoch.
        on_epoch: see `run_stage`.

    Raises:
        PictureError: a picture that cannot be read any more.
        SettingsError: see `run_stage`.
    """
    device = next(network.parameters()).device
    preprocessing = network.config.preprocessing
    augmentation = augmentation_for(dataset.spec)
    network.to(memory_format=torch.channels_last)  # as the pictures come: convolutions need not turn either
    first = len(best.rows) + 1

    def batches(epoch: int) -> Batches:
        description = f"Epoch {first + epoch} of {first + plan.full_epochs - 1}"
        with progress(description, len(dataset.train)) as advance:
            for images, labels in picture_batches(
                dataset.train,
                preprocessing,
                batch_size=plan.batch_size,
                workers=plan.workers,
                augmentation=augmentation,
                seed=seed,
                view=epoch,
                shuffled=True,
            ):
                yield network.normalise(images.to(device)), labels.to(device)
                advance(len(labels))

    def evaluate() -> tuple[float, float]:
        logits = classify_pictures(network, dataset.val, plan)
        return loss_and_top1(logits, torch.from_numpy(dataset.val.labels))

    run_stage(
        Stage(
            name="full",
            model=network,
            optimizer=layered_optimizer(network, plan.full_lr, plan.weight_decay, plan.layer_decay),
            batches=batches,
            steps=batch_count(len(dataset.train), plan.batch_size),
            evaluate=evaluate,
            epochs=plan.full_epochs,
            warm_up=plan.warm_up,
            label_smoothing=plan.label_smoothing,
            kept_in_eval=[] if plan.from_scratch else folded_norms(network),
        ),
        best,
        on_epoch,
    )


def folded_norms(network: nn.Module) -> list[nn.Module]:
    """Batch norms that do nothing in eval mode: their mean 0 and variance 1 were folded into the layers before them.

    To train on a batch's own statistics would make the network another one, and what it learned would be lost.
    """
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and _is_folded(module)]


def _is_folded(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and bool((mean == 0).all()) and bool(((variance - 1).abs() < 1e-3).all())


@torch.inference_mode()
def classify_pictures(network: Network, part: Part, plan: Plan, advance: Callable[[int], None] = lambda _: None) -> Tensor:
    """Logits `[n, C]` of a part's pictures, on the CPU, by a network in eval mode. `advance` is told of pictures.

    Raises:
        PictureError: a picture that cannot be read any more.
    """
    device = next(network.parameters()).device
    logits = []
    for images, _ in picture_batches(part, network.config.preprocessing, batch_size=plan.batch_size, workers=plan.workers):
        logits.append(network(network.normalise(images.to(device))).cpu())
        advance(len(images))
    return torch.cat(logits)
