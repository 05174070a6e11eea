"""Exceptions for all problems that a user can act on, as one hierarchy.

    TlcliError
    ├── SettingsError
    │   └── ResourceError
    ├── ImageError
    ├── RequestError
    ├── NotFoundError
    ├── DatasetError
    ├── WeightsError
    ├── HubError
    ├── ModelFileError
    ├── DeviceError
    ├── ExportError
    ├── ParityError
    ├── ServerError
    ├── OverloadedError
    │   └── MemoryLimitError
    └── TimeLimitError

Each message is one line that names the location, the expected and actual values, and a remedy. The command line
prints it after ``Error:`` and exits with `exit_code`; the server converts it to a gRPC status
(`tlcli.service.protocol.error_status`). Any other exception is a bug in tlcli.
"""

from __future__ import annotations


class TlcliError(Exception):
    """Base class of the exceptions for problems that a user can act on."""

    exit_code = 1


class SettingsError(TlcliError):
    """A flag or setting that is invalid or contradicts another."""

    exit_code = 2


class ResourceError(SettingsError):
    """Out of memory, processes or disk space. The same command can succeed once more of the resource is available."""


class ImageError(TlcliError):
    """Data that cannot be decoded as an image, or an image that exceeds a limit."""


class RequestError(TlcliError):
    """A request that does not match the model: its classes, map methods or tensor shapes."""


class NotFoundError(TlcliError):
    """A missing model, version, run or file."""


class DatasetError(TlcliError):
    """A data set that cannot be used for training or evaluation."""


class WeightsError(TlcliError):
    """A checkpoint that does not match the network."""


class HubError(TlcliError):
    """A failed download of weights or a data set."""


class ModelFileError(TlcliError):
    """A `model.onnx` that cannot be loaded or served."""


class DeviceError(TlcliError):
    """A requested device that is not available."""


class ExportError(TlcliError):
    """A network that cannot be exported as a graph."""


class ParityError(TlcliError):
    """An exported model whose outputs differ from the reference (PyTorch, timm's own model, or the float file) by more than allowed."""


class ServerError(TlcliError):
    """A server that is unreachable or not serving, as seen by a client."""


class OverloadedError(TlcliError):
    """A server that has reached its limit of queued work.

    retry_s: seconds to wait before retrying.
    """

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class MemoryLimitError(OverloadedError):
    """A request that needs more memory than the server currently has free."""


class TimeLimitError(TlcliError):
    """An image that took longer to process than the server allows."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's exception for use in a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
