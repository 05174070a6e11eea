"""Everything that can go wrong for a user's reason, as one small tree.

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
it after ``Error:`` and leaves with `exit_code`; the server turns it into a gRPC status
(`tlcli.service.protocol.error_status`). Anything outside this tree is a defect of ours.
"""

from __future__ import annotations


class TlcliError(Exception):
    """The root: a problem that the user can act on."""

    exit_code = 1


class SettingsError(TlcliError):
    """A flag or a setting that is wrong or contradicts another."""

    exit_code = 2


class ResourceError(SettingsError):
    """Memory, processes or disk space that ran out; with more of it, the same command goes through."""


class ImageError(TlcliError):
    """Bytes that are not an image we can read, or one over a limit."""


class RequestError(TlcliError):
    """A request that does not fit the model: class, method, tensor shape."""


class NotFoundError(TlcliError):
    """A model, a version, a run or a file that is not there."""


class DatasetError(TlcliError):
    """Images that cannot be trained on."""


class WeightsError(TlcliError):
    """A checkpoint that does not fit."""


class HubError(TlcliError):
    """A download that cannot be had."""


class ModelFileError(TlcliError):
    """A `model.onnx` that cannot be served."""


class DeviceError(TlcliError):
    """A device that was asked for and is not there."""


class ExportError(TlcliError):
    """A network whose graph cannot be written."""


class ParityError(TlcliError):
    """An export whose answers differ from PyTorch's."""


class ServerError(TlcliError):
    """What a client hears when the server cannot be asked."""


class OverloadedError(TlcliError):
    """A server that has as much to do as it may take on.

    retry_s: after so many seconds it is worth asking again.
    """

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class MemoryLimitError(OverloadedError):
    """A request for which the server has no memory at the moment."""


class TimeLimitError(TlcliError):
    """An image that took a server longer than it gives one."""


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, as a part of one of our one-line messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
