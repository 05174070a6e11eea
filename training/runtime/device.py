"""Device and thread count for training with PyTorch."""

from __future__ import annotations

import torch

from tlcli.contract.errors import DeviceError
from tlcli.contract.process.cores import usable_cores


def torch_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` prefers CUDA.

    Raises:
        DeviceError: `cuda` was requested, but PyTorch finds no CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: PyTorch finds no CUDA device; use --device cpu, or auto for the best available device")
    return torch.device(name)


def keep_to_usable_cores() -> None:
    """Limit PyTorch's threads to the cores available to this process, since PyTorch ignores the CPU limit of a container."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
