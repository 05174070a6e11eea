"""Fine-tuning of all layers, with augmentation, layer-wise learning rate decay, label smoothing and trainable batch norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tlcli.contract.errors import SettingsError
from tlcli.training.data.dataloader import batch_count, image_batches
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.engine.amp import Precision
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.checkpoint import Checkpoint
from tlcli.training.engine.loss import objective_of
from tlcli.training.engine.mixup import mixing
from tlcli.training.engine.optimizer import layered_optimizer
from tlcli.training.engine.sampling import epoch_order
from tlcli.training.engine.stage import Batch, Batches, Best, Stage, run_stage
from tlcli.training.engine.step import Log, StepOptions, no_log
from tlcli.training.engine.sync_batchnorm import sync_norms
from tlcli.training.engine.unfreezing import GradualUnfreezing
from tlcli.training.metrics.scores import Validation, validate
from tlcli.training.models.batch_norms import folded_norms
from tlcli.training.models.network import Network
from tlcli.training.runtime.distributed import DistributedContext
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.plan import Plan


@dataclass(frozen=True, eq=False)
class AllLayers:
    """Training stage that fine-tunes every layer of a network.

    network: network to train, already on the training device.
    dataset: data set with a training and a validation part.
    plan: resolved settings.
    seed: seed for the image order, the augmentation and random layers such as dropout.
    dist: distributed context of the processes that share each batch.
    progress: factory of progress bars, one per epoch. log: function that prints a line for the user.
    first_epoch: number of the stage's first epoch within the run.
    """

    network: Network
    dataset: Dataset
    plan: Plan
    seed: int
    dist: DistributedContext = field(default_factory=DistributedContext)
    progress: ProgressFactory = silent
    log: Log = no_log
    first_epoch: int = 1

    def train(self, best: Best, callback: Callback, checkpoint: Checkpoint | None = None) -> None:
        """Train all layers. Afterwards, the network has the weights of the best epoch.

        Args:
            best: best epoch of earlier stages, with the current weights of the network; updated after every epoch.
            callback: hooks to run after each step and each epoch.
            checkpoint: state to resume from; None starts fresh.

        Raises:
            ImageError: an image can no longer be read.
            SettingsError: `stage` or `run_stage` rejects the settings.
        """
        run_stage(self.stage(), best, callback, checkpoint)

    def stage(self) -> Stage:
        """Build the stage to run. This converts the network in place to channels-last memory format and synchronised batch norms.

        Batch norms are synchronised only if there are several processes.

        Raises:
            SettingsError: a batch has fewer images than there are processes.
        """
        network, plan, classes = self.network, self.plan, len(self.dataset.classes)
        network.to(memory_format=torch.channels_last)  # matches the images, so that convolutions need no layout conversion
        if self.dist.world > 1:
            sync_norms(network, network.device)
        smallest = smallest_micro_batch(len(self.dataset.train), plan)
        if smallest < self.dist.world:
            raise SettingsError(f"batches of {smallest} images are too small for {self.dist.world} processes: use a larger --batch-size")
        optimizer = layered_optimizer(network, plan.full_lr, plan.weight_decay, plan.layer_decay, plan.config.optimizer)
        return Stage(
            name="full",
            model=network,
            optimizer=optimizer,
            batches=self.batches,
            steps=self._steps,
            evaluate=self.evaluate,
            epochs=plan.full_epochs,
            warm_up=plan.warm_up,
            schedule=plan.config.schedule,
            kept_in_eval=[] if plan.from_scratch else folded_norms(network),
            options=StepOptions(
                objective=objective_of(plan.full_label_smoothing, plan, self.dataset.train.labels, classes, network.device),
                mixing=mixing(plan.config.mixup, plan.config.cutmix, classes),
                micro_batch_size=plan.config.batch_size,
                ema=plan.config.ema,
                precision=Precision(network.device, plan.config.amp),
                compiled=plan.config.compile,
                dist=self.dist,
                seed=self.seed,
            ),
            patience=plan.config.patience,
            unfreezing=GradualUnfreezing(optimizer, plan.full_epochs) if plan.config.gradual_unfreezing else None,
            log=self.log,
        )

    def batches(self, epoch: int) -> Batches:
        """Yield this process's share of each batch in an epoch: normalised images, labels and weights on the training device.

        Args:
            epoch: index of the epoch within the stage, starting at 0.
        """
        network, plan, images_in_all = self.network, self.plan, len(self.dataset.train)
        loaded = image_batches(
            self.dataset.train,
            network.config.preprocessing,
            batch_size=plan.config.batch_size * plan.config.accumulate,
            workers=plan.workers,
            augmentation=plan.augmentation,
            seed=self.seed,
            view=epoch,
            order=epoch_order(plan.config.sampler, self.dataset.train.labels, self.seed, epoch),
            share=(self.dist.rank, self.dist.world),
            micro_batch_size=plan.config.batch_size,
        )
        weights = None if self.dataset.train.weights is None else torch.from_numpy(self.dataset.train.weights)
        last_epoch = self.first_epoch + plan.full_epochs - 1
        with self.progress(f"Epoch {self.first_epoch + epoch} of {last_epoch}", images_in_all) as advance:
            done = 0
            for step, (images, labels, indices) in enumerate(loaded, start=1):
                own = None if weights is None else weights[indices].to(network.device)
                yield Batch(network.normalise(images.to(network.device)), labels.to(network.device), own)
                advance(step * images_in_all // self._steps - done)
                done = step * images_in_all // self._steps

    def evaluate(self) -> Validation:
        """Return the metrics on the validation part."""
        logits = classify_images(self.network, self.dataset.val, self.plan, dist=self.dist)
        return validate(logits, torch.from_numpy(self.dataset.val.labels))

    @property
    def _steps(self) -> int:
        return batch_count(len(self.dataset.train), self.plan.config.batch_size * self.plan.config.accumulate)


@torch.inference_mode()
def classify_images(
    network: Network,
    part: Part,
    plan: Plan,
    advance: Callable[[int], None] = lambda _: None,
    dist: DistributedContext = DistributedContext(),  # noqa: B008  # immutable
) -> Tensor:
    """Classify all images of a part and return the logits `[n, C]` on the CPU.

    Args:
        network: network in eval mode.
        part: part with n images.
        plan: training plan, of which the batch size and the number of workers are used.
        advance: progress callback, called with the number of images in each batch.
        dist: distributed context of the processes that share the images; each process returns the logits of all images.

    Raises:
        ImageError: an image can no longer be read.
    """
    share = part.take(range(dist.rank, len(part), dist.world)) if dist.world > 1 else part
    logits = [torch.empty(0, network.config.num_classes)]
    loaded = image_batches(share, network.config.preprocessing, batch_size=plan.config.batch_size, workers=plan.workers)
    for images, _, _ in loaded if len(share) else ():
        logits.append(network(network.normalise(images.to(network.device))).float().cpu())
        advance(len(images))
    return dist.all_gather(torch.cat(logits), len(part))


def smallest_micro_batch(images: int, plan: Plan) -> int:
    """Return the size of the smallest micro-batch in training, summed over all processes.

    Args:
        images: number of training images.
        plan: training plan, of which the batch size and gradient accumulation are used.
    """
    steps = batch_count(images, plan.config.batch_size * plan.config.accumulate)
    sizes = {images // steps, -(-images // steps)}
    return min(size // batch_count(size, plan.config.batch_size) for size in sizes)
