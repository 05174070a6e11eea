"""Whether PyTorch can compile here, and what is said where it cannot."""

from __future__ import annotations

import torch

from tlcli.contract.errors import SettingsError, first_line


def require_compiler(device: torch.device) -> None:
    """Compile a line, before anything is read or trained.

    Raises:
        SettingsError: `torch.compile` does not work on this device: most often there is no C++ compiler.
    """
    compiled = torch.compile(_next)
    try:
        compiled(torch.zeros(8, device=device))
    except RuntimeError as error:
        way_out = "install a C++ compiler, such as Debian's g++, or leave --compile out"
        raise SettingsError(f"--compile: PyTorch cannot compile here ({_reason(error)}): {way_out}") from error


def refuse_uncompiled(error: RuntimeError | AssertionError) -> None:
    """Raises: SettingsError: a step failed with this error because its network could not be compiled.

    Compiled code asserts the strides of each result. On a GPU, cuDNN may return others where features have shrunk to 1 x 1.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second, and whoever compiles has it already

    if isinstance(error, TorchDynamoException) or (isinstance(error, AssertionError) and str(error).startswith("expected size")):
        raise SettingsError(f"--compile: this network cannot be compiled ({_reason(error)}): leave --compile out") from error


def _reason(error: RuntimeError | AssertionError) -> str:
    """Without what PyTorch says around it."""
    return first_line(getattr(error, "inner_exception", error))


def _next(values: torch.Tensor) -> torch.Tensor:
    return values + 1
