"""The processes that train one network together, as `torchrun` starts them: who they are, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from tlcli.training.runtime.parent_death import end_with_parent

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """rank: this one's number. world: how many there are. local: this one's number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The others enter when the first has left: what it fetches or computes is then there."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()

    def said_by_first(self, value: T) -> T:
        """The first one's `value`, in all of them."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, value: Tensor) -> Tensor:
        """The sum over all, in place."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def gathered(self, rows: Tensor, count: int) -> Tensor:
        """Rows that were dealt out one by one, put together again.

        Args:
            rows: `[m, ...]` on the CPU, those of index rank, rank + world, ...
            count: of all rows.
        """
        if self.world == 1:
            return rows
        parts: list[Tensor] = [rows] * self.world
        distributed.all_gather_object(parts, rows)
        together = rows.new_empty((count, *rows.shape[1:]))
        for rank, part in enumerate(parts):
            together[rank :: self.world] = part
        return together


def is_first() -> bool:
    """Whether this process is the one that writes and speaks, also before and after it joins the others."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the others, if `torchrun` has started this one with any: with NCCL for what is on a GPU, with gloo for what is not.

    Whoever starts processes otherwise, with `torchrun`'s environment variables, may have joined them already: then they stay so.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # `torchrun` ends its processes, unless it is killed itself
    me = Processes(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(me.local)
    if distributed.is_initialized():
        yield me
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield me
    finally:
        distributed.destroy_process_group()
