"""The device that PyTorch trains on."""

from __future__ import annotations

import torch

from tlcli.contract.errors import DeviceError
from tlcli.contract.process.cores import usable_cores


def torch_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device.

    Raises:
        DeviceError: `cuda` was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: PyTorch finds no CUDA device here; use --device cpu, or auto to take what there is")
    return torch.device(name)


def keep_to_usable_cores() -> None:
    """No more threads of PyTorch's than cores that this process may use: PyTorch does not see a container's limit."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
