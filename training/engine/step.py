"""Training step over all processes, with gradients accumulated over as many micro-batches as memory requires."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tlcli.contract.errors import SettingsError
from tlcli.training.data.dataloader import batch_count
from tlcli.training.engine.amp import Precision
from tlcli.training.engine.loss import Objective, TrainingLoss
from tlcli.training.engine.mixup import Mixing
from tlcli.training.models.batch_norms import has_batch_norms, refuse_lone_image
from tlcli.training.runtime.distributed import DistributedContext
from tlcli.training.runtime.seeds import seed_of
from tlcli.training.runtime.torch_compile import refuse_uncompiled

Log = Callable[[str], None]
"""Function that prints a line for the user."""


def no_log(line: str) -> None:
    """Discard the line."""


@dataclass(frozen=True, eq=False)
class StepOptions:
    """Options that apply to every step of a stage.

    objective: loss to minimise. mixing: mixup or CutMix transform for each batch; None to disable.
    micro_batch_size: maximum number of images in one forward pass, over all processes. A larger batch is divided into micro-batches
        whose gradients are accumulated. None for no limit.
    ema: decay of the moving average of the weights; None to disable.
    precision: precision of the forward pass; None for float32. compiled: True to use `torch.compile`.
    dist: distributed context of the processes that share each batch.
    seed: seed for random layers such as dropout.
    """

    objective: TrainingLoss = Objective()  # noqa: RUF009  # immutable
    mixing: Mixing | None = None
    micro_batch_size: int | None = None
    ema: float | None = None
    precision: Precision | None = None
    compiled: bool = False
    dist: DistributedContext = DistributedContext()  # noqa: RUF009  # immutable
    seed: int = 0


@dataclass(frozen=True)
class StepResult:
    """Metrics of one step, summed over all processes.

    loss: cross-entropy in nats, summed over `count` images, of the plain logits, without label smoothing and weights.
    right: number of correct predictions; NaN with several labels per image.
    """

    loss: float
    right: float
    count: int

    @property
    def finite(self) -> bool:
        """True unless the loss is NaN or infinite."""
        return self.loss - self.loss == 0


class Stepper:
    """Runner of the optimizer steps for one model.

    The random numbers of a step depend only on the seed, the step number and the rank, so that a resumed run reproduces them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, options: StepOptions, log: Log = no_log) -> None:
        """Create a stepper for `model`.

        Args:
            model: model to train.
            optimizer: optimizer of the model's parameters.
            options: options of each step.
            log: function that prints a line each time an out-of-memory error increases the number of micro-batches.
        """
        self._model = model
        self._optimizer = optimizer
        self._options = options
        self._log = log
        self._least_micro_batches = 1
        self._precision = options.precision or Precision(torch.device("cpu"), "off")
        self._wrapped: nn.Module | None = None

    def begin(self) -> None:
        """Wrap the model in `DistributedDataParallel` and `torch.compile` as needed.

        Call this before the first step, and again whenever the set of frozen parameters changes.
        """
        wrapped = self._model
        if self._options.dist.world > 1:
            on_gpu = next(wrapped.parameters()).is_cuda
            wrapped = DistributedDataParallel(wrapped, device_ids=[self._options.dist.local] if on_gpu else None)
        self._wrapped = cast("nn.Module", torch.compile(wrapped)) if self._options.compiled else wrapped

    def step(self, number: int, inputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> StepResult:
        """Run one optimizer step on this process's share of the batch.

        Args:
            number: number of the step, starting at 0.
            inputs: model inputs, `[n, ...]`.
            labels: class indices, int64 `[n]`; with several labels per image 0 or 1 for each class, int64 `[n, C]`.
            weights: weights of the images in the loss, float `[n]`; None if all weigh the same.

        Raises:
            SettingsError: memory ran out and the batch cannot be divided further, the network cannot be compiled, or a batch norm needs
                more than one image.
        """
        while True:
            try:
                return self._step(number, inputs, labels, weights)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    if self._options.compiled:
                        refuse_uncompiled(error)
                    raise
                self._divide(len(labels), str(error).splitlines()[0])  # the retry runs outside the handler, whose frames hold memory
            except AssertionError as error:
                if self._options.compiled:
                    refuse_uncompiled(error)
                raise
            except ValueError as error:
                refuse_lone_image(error)
                raise
            if inputs.is_cuda:
                torch.cuda.empty_cache()

    def _step(self, number: int, inputs: Tensor, labels: Tensor, weights: Tensor | None) -> StepResult:
        assert self._wrapped is not None, "call begin() first"
        options = self._options
        self._seed(number, inputs)
        targets = labels
        if options.mixing is not None:
            assert weights is None, "mixed images have no weight of their own"
            inputs, targets = options.mixing(inputs, labels)
        self._optimizer.zero_grad(set_to_none=True)
        weight = options.dist.all_reduce(options.objective.weight(targets, weights))
        sums = torch.zeros(3, dtype=torch.float64, device=labels.device)
        count = self._micro_batches(len(labels))
        of_images = [None] * count if weights is None else weights.tensor_split(count)
        micro_batches = zip(inputs.tensor_split(count), targets.tensor_split(count), labels.tensor_split(count), of_images, strict=True)
        for index, (micro_inputs, micro_targets, micro_labels, micro_weights) in enumerate(micro_batches):
            with self._sync_gradients(index + 1 == count):
                with self._precision.forward():
                    logits = self._wrapped(micro_inputs)
                    loss = options.objective.total(logits, micro_targets, micro_weights) / weight
                self._precision.backward(loss * options.dist.world)  # DDP averages gradients over processes
            sums[0] += options.objective.unweighted(logits.detach().float(), micro_targets)
            sums[1] += (logits.argmax(1) == micro_labels).sum() if labels.ndim == 1 else torch.nan
            sums[2] += len(micro_labels)
        self._precision.step(self._optimizer)
        loss_sum, right, images = options.dist.all_reduce(sums).tolist()
        return StepResult(loss_sum, right, int(images))

    def _seed(self, number: int, inputs: Tensor) -> None:
        """Seed the random generators that a step may use. `torch.manual_seed` would take a hundred times as long."""
        seed = seed_of(self._options.seed, number, self._options.dist.rank)
        torch.default_generator.manual_seed(seed)
        if inputs.is_cuda:
            torch.cuda.manual_seed(seed)

    def _sync_gradients(self, sync: bool) -> AbstractContextManager[None]:
        """Return a context manager that synchronises gradients between processes only if `sync` is True (the last micro-batch)."""
        return nullcontext() if sync or not isinstance(self._wrapped, DistributedDataParallel) else self._wrapped.no_sync()

    def _divide(self, images: int, reason: str) -> None:
        """Double the number of micro-batches after an out-of-memory error.

        Raises:
            SettingsError: each micro-batch already holds a single image, or there are several processes.
        """
        self._optimizer.zero_grad(set_to_none=True)
        count = self._micro_batches(images)
        if count >= images or self._options.dist.world > 1:
            raise SettingsError(f"out of memory ({reason}): use a smaller --batch-size, --image-size or network")
        self._least_micro_batches = min(2 * count, images)
        effect = "batch norms see one at a time" if has_batch_norms(self._model) else "results do not change"
        self._log(f"out of memory: each batch now runs in {self._least_micro_batches} micro-batches; {effect}")

    def _micro_batches(self, images: int) -> int:
        """Return the number of micro-batches for a batch of which this process holds `images` images. All processes get the same number."""
        size = self._options.micro_batch_size
        if size is None:
            return min(self._least_micro_batches, images)
        total = int(self._options.dist.all_reduce(torch.tensor(images)))
        return min(max(batch_count(total, size), self._least_micro_batches), images)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
