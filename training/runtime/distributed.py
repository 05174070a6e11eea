"""Distributed training under `torchrun`: rank of this process and collective operations."""

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
    """Rank of this process in a distributed training run, with collective operations over all processes.

    rank: global rank. world: world size (number of processes). local: local rank on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """True if this process is rank 0, which writes files and reports progress."""
        return self.rank == 0

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block in rank 0 first and then in the other processes, so that they can reuse rank 0's downloads and results."""
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
        """Broadcast `value` from rank 0 and return it in all processes."""
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
        """Gather rows that were distributed round-robin, and return them in their original order.

        Args:
            rows: rows of this process with indices rank, rank + world, ..., `[m, ...]` on the CPU.
            count: total number of rows over all processes.
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
    """Return True in the process that writes files and reports progress. Works before and after `join_processes`."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def join_processes(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group of `torchrun` within the block, with NCCL for GPU tensors and gloo for CPU tensors.

    If `torchrun`'s environment variables are set and a process group is already initialized, that group is used and left open.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistributedContext()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # `torchrun` stops its processes unless it is itself killed
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
