"""Everything that can go wrong for a user's reason, as one small tree.

    TlcliError
    ├── SettingsError       a flag or a setting that is wrong or contradicts another
    ├── PictureError        bytes that are not a picture we can read, or one over a limit
    ├── RequestError        a request that does not fit the model: class, method, tensor shape
    ├── NotFoundError       a model, a version, a run or a file that is not there
    ├── DatasetError        pictures that cannot be trained on
    ├── WeightsError        a checkpoint that does not fit
    ├── HubError            a download that cannot be had
    ├── ModelFileError      a model.onnx that cannot be served
    ├── DeviceError         a device that was asked for and is not there
    ├── ExportError         a network whose graph cannot be written
    ├── ParityError         an export whose answers differ from PyTorch's
    └── ServerError         what a client hears when the server cannot be asked

Each message is one line: where, what was expected, what came, and the way out. The command line prints
it after ``Error:`` and leaves with `exit_code`; the server turns it into a gRPC status
(`service.errors`). Anything outside this tree is a defect of ours.
"""

from __future__ import annotations


class TlcliError(Exception):
    """The root: a problem that the user can act on."""

    exit_code = 1


class SettingsError(TlcliError):
    exit_code = 2


class PictureError(TlcliError):
    pass


class RequestError(TlcliError):
    pass


class NotFoundError(TlcliError):
    pass


class DatasetError(TlcliError):
    pass


class WeightsError(TlcliError):
    pass


class HubError(TlcliError):
    pass


class ModelFileError(TlcliError):
    pass


class DeviceError(TlcliError):
    pass


class ExportError(TlcliError):
    pass


class ParityError(TlcliError):
    pass


class ServerError(TlcliError):
    pass
