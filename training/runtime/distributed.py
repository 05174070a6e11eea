"""Distributed training under `torchrun`: the rank of this process, and collective operations over all processes."""

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
class DistributedContext:
    """Place of this process among the processes of a training, with their collective operations.

    rank: number of this process. world: number of processes. local: number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """True for the process that writes files and reports progress."""
        return self.rank == 0

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run a block in rank 0 first, then in the other processes, which find what rank 0 has downloaded or computed."""
        if not self.is_rank_zero:
            self.barrier()
        yield
        if self.is_rank_zero:
            self.barrier()

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world > 1:
            distributed.barrier()

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value` in all processes."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def all_gather(self, rows: Tensor, count: int) -> Tensor:
        """Collect rows that were distributed round-robin, in their original order.

        Args:
            rows: this process's rows, `[m, ...]` on the CPU: those with index rank, rank + world, ...
            count: number of rows over all processes.
        """
        if self.world == 1:
            return rows
        shares: list[Tensor] = [rows] * self.world
        distributed.all_gather_object(shares, rows)
        all_rows = rows.new_empty((count, *rows.shape[1:]))
        for rank, share in enumerate(shares):
            all_rows[rank :: self.world] = share
        return all_rows


def is_rank_zero() -> bool:
    """Return True in the process that writes files and reports progress; valid before and after the processes join."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def join_processes(device: torch.device) -> Iterator[DistributedContext]:
    """Join the other processes that `torchrun` has started, with NCCL for GPU tensors and gloo for CPU tensors.

    A process group that was initialized by other means, with `torchrun`'s environment variables, is used as it is and left open.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistributedContext()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # `torchrun` ends its processes, unless it is killed itself
    context = DistributedContext(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(context.local)
    if distributed.is_initialized():
        yield context
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield context
    finally:
        distributed.destroy_process_group()
