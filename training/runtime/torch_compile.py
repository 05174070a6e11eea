"""Checks and error messages for `torch.compile`."""

from __future__ import annotations

import torch

from tlcli.contract.errors import SettingsError, first_line


def require_compiler(device: torch.device) -> None:
    """Check that `torch.compile` works by compiling a trivial function. Call this before reading any data.

    Raises:
        SettingsError: `torch.compile` does not work on this device, usually because there is no C++ compiler.
    """
    compiled = torch.compile(_increment)
    try:
        compiled(torch.zeros(8, device=device))
    except RuntimeError as error:
        remedy = "install a C++ compiler, such as Debian's g++, or leave --compile out"
        raise SettingsError(f"--compile: PyTorch cannot compile on this machine ({_reason(error)}): {remedy}") from error


def refuse_uncompiled(error: RuntimeError | AssertionError) -> None:
    """Translate an error raised by a compiled training step; do nothing if compilation is not the cause.

    Compiled code asserts the strides of each result. On a GPU, cuDNN may return different strides once features have shrunk to 1 x 1.

    Raises:
        SettingsError: the step failed because the network could not be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # the import takes a second, but compiling has already imported it

    if isinstance(error, TorchDynamoException) or (isinstance(error, AssertionError) and str(error).startswith("expected size")):
        raise SettingsError(f"--compile: this network cannot be compiled ({_reason(error)}): leave --compile out") from error


def _reason(error: RuntimeError | AssertionError) -> str:
    """Return the first line of the error that PyTorch's wrapper exception contains."""
    return first_line(getattr(error, "inner_exception", error))


def _increment(values: torch.Tensor) -> torch.Tensor:
    return values + 1
