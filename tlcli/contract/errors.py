"""Exceptions for every problem that a user can act on, as one small tree.

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

Each message is one line: where, what was expected, what came, and the way out. The command line prints
it after ``Error:`` and exits with `exit_code`; the server turns it into a gRPC status
(`tlcli.service.protocol.error_status`). Any other exception is a bug in tlcli.
"""

from __future__ import annotations


class TlcliError(Exception):
    """Base class of all problems that the user can act on."""

    exit_code = 1


class SettingsError(TlcliError):
    """A flag or setting that is invalid or contradicts another."""

    exit_code = 2


class ResourceError(SettingsError):
    """Exhausted memory, processes or disk space; with more of it, the same command succeeds."""


class ImageError(TlcliError):
    """Bytes that cannot be decoded as an image, or an image over a limit."""


class RequestError(TlcliError):
    """A request that does not match the model: its classes, map methods or tensor shapes."""


class NotFoundError(TlcliError):
    """A missing model, version, run or file."""


class DatasetError(TlcliError):
    """A data set that cannot be used for training or evaluation."""


class WeightsError(TlcliError):
    """A checkpoint that does not match the network."""


class HubError(TlcliError):
    """A failed download."""


class ModelFileError(TlcliError):
    """A `model.onnx` that cannot be served."""


class DeviceError(TlcliError):
    """A requested device that is not available."""


class ExportError(TlcliError):
    """A network that cannot be exported as a graph."""


class ParityError(TlcliError):
    """An exported graph whose outputs differ from PyTorch's."""


class ServerError(TlcliError):
    """A server that is unreachable or not serving, as seen by a client."""


class OverloadedError(TlcliError):
    """A server at its limit of queued work.

    retry_s: seconds to wait before retrying.
    """

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class MemoryLimitError(OverloadedError):
    """A request that exceeds the server's free memory at the moment."""


class TimeLimitError(TlcliError):
    """An image that took longer to process than the server allows."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's exception, to be quoted in a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
