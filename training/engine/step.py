"""One step of an optimizer: forward, loss, gradients, in as many parts as the memory needs, over as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tlcli.contract.errors import SettingsError
from tlcli.training.data.dataloader import batch_count
from tlcli.training.engine.amp import Precision
from tlcli.training.engine.loss import Objective
from tlcli.training.engine.mixup import Mixing
from tlcli.training.models.batch_norms import has_batch_norms, refuse_lone_image
from tlcli.training.runtime.distributed import DistributedContext
from tlcli.training.runtime.seeds import seed_of
from tlcli.training.runtime.torch_compile import refuse_uncompiled


@dataclass(frozen=True, eq=False)
class Way:
    """How steps are taken.

    objective: what is minimised. mixing: of each batch.
    part_size: a batch of more images than this, over all processes, is run in parts, one after the other, their gradients added up.
        None for no limit.
    average: decay of the weights' moving average; None for none.
    precision: None for float32. compiled: by `torch.compile`.
    processes: each takes the step with its share of the batch.
    seed: of what is drawn while the network runs, such as dropout.
    """

    objective: Objective = Objective()  # noqa: RUF009  # immutable
    mixing: Mixing | None = None
    part_size: int | None = None
    average: float | None = None
    precision: Precision | None = None
    compiled: bool = False
    processes: DistributedContext = DistributedContext()  # noqa: RUF009  # immutable
    seed: int = 0


@dataclass(frozen=True)
class Stepped:
    """Of one step, over all processes. loss: the sum over `count` images, nats, unsmoothed and unweighted. right: of them."""

    loss: float
    right: float
    count: int

    @property
    def finite(self) -> bool:
        """Whether the loss is a number."""
        return self.loss - self.loss == 0


class Steps:
    """Takes steps. What is drawn in each depends on the seed, its number and the process alone, so that a run can be gone on with."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, way: Way, say: Callable[[str], None] = lambda _: None) -> None:
        """`say`: told when a batch has to be run in more parts."""
        self._model = model
        self._optimizer = optimizer
        self._way = way
        self._say = say
        self._fewest = 1
        self._precision = way.precision or Precision(torch.device("cpu"), "off")
        self._runs: nn.Module | None = None

    def begin(self) -> None:
        """To be called when it has changed which parameters learn; before the first step too."""
        runs = self._model
        if self._way.processes.world > 1:
            on_gpu = next(runs.parameters()).is_cuda
            runs = DistributedDataParallel(runs, device_ids=[self._way.processes.local] if on_gpu else None)
        self._runs = cast("nn.Module", torch.compile(runs)) if self._way.compiled else runs

    def take(self, number: int, inputs: Tensor, labels: Tensor) -> Stepped:
        """Step `number`, from 0, with this process's share of the batch: inputs of the model, labels int64 `[n]`.

        Raises:
            SettingsError: not even one image at a time fits into the memory, the network cannot be compiled, or a batch norm needs
                more than one image.
        """
        while True:
            try:
                return self._take(number, inputs, labels)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    if self._way.compiled:
                        refuse_uncompiled(error)
                    raise
                self._divide(len(labels), str(error).splitlines()[0])  # the next try is outside of this one's frames
            except AssertionError as error:
                if self._way.compiled:
                    refuse_uncompiled(error)
                raise
            except ValueError as error:
                refuse_lone_image(error)
                raise
            if inputs.is_cuda:
                torch.cuda.empty_cache()

    def _take(self, number: int, inputs: Tensor, labels: Tensor) -> Stepped:
        assert self._runs is not None, "begin first"
        way = self._way
        self._seed(number, inputs)
        targets = labels
        if way.mixing is not None:
            inputs, targets = way.mixing(inputs, labels)
        self._optimizer.zero_grad(set_to_none=True)
        weight = way.processes.all_reduce(way.objective.weight(targets))
        sums = torch.zeros(3, dtype=torch.float64, device=labels.device)
        count = self._parts(len(labels))
        parts = list(zip(inputs.tensor_split(count), targets.tensor_split(count), labels.tensor_split(count), strict=True))
        for part, (some, wanted, classes) in enumerate(parts):
            with self._alone(part + 1 < len(parts)):
                with self._precision.forward():
                    logits = self._runs(some)
                    loss = way.objective.total(logits, wanted) / weight
                self._precision.backward(loss * way.processes.world)  # the processes' gradients are averaged
            sums[0] += functional.cross_entropy(logits.detach().float(), wanted, reduction="sum")
            sums[1] += (logits.argmax(1) == classes).sum()
            sums[2] += len(classes)
        self._precision.step(self._optimizer)
        loss_sum, right, images = way.processes.all_reduce(sums).tolist()
        return Stepped(loss_sum, right, int(images))

    def _seed(self, number: int, inputs: Tensor) -> None:
        """Both generators that the step may draw from; `torch.manual_seed` takes a hundred times as long."""
        seed = seed_of(self._way.seed, number, self._way.processes.rank)
        torch.default_generator.manual_seed(seed)
        if inputs.is_cuda:
            torch.cuda.manual_seed(seed)

    def _alone(self, more: bool) -> AbstractContextManager[None]:
        """Gradients go over to the other processes with the last part."""
        return self._runs.no_sync() if more and isinstance(self._runs, DistributedDataParallel) else nullcontext()

    def _divide(self, images: int, reason: str) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        parts = self._parts(images)
        if parts >= images or self._way.processes.world > 1:
            raise SettingsError(f"the memory does not suffice ({reason}): try a smaller --batch-size, --image-size or network")
        self._fewest = min(2 * parts, images)
        kept = "and batch norms see one at a time" if has_batch_norms(self._model) else "which changes nothing else"
        self._say(f"out of memory: each batch is now run in {self._fewest} parts, {kept}")

    def _parts(self, images: int) -> int:
        """How many parts a batch is run in, of which this process has `images`; the same in all processes."""
        size = self._way.part_size
        if size is None:
            return min(self._fewest, images)
        whole = int(self._way.processes.all_reduce(torch.tensor(images)))
        return min(max(batch_count(whole, size), self._fewest), images)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
