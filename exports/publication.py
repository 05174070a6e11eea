"""Publication of an exported file as a version in the model repository."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.model.description import Description, Parity
from tlcli.contract.model.repository_layout import versions
from tlcli.exports.triton_config import triton_files

Say = Callable[[str], None]

DEFAULT_CHECK_IMAGES = 16


@dataclass(frozen=True)
class Exported:
    """Result of an export: the model at `<repository>/<name>/<version>/model.onnx`, its description and its parity figures."""

    path: Path
    name: str
    version: int
    description: Description
    parity: Parity


@contextmanager
def model_folder(repository: Path, name: str) -> Iterator[Path]:
    """Yield the folder of a model, which is created. A new folder without a version is removed if the block raises an exception."""
    folder = repository / name
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not existed and not versions(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(partial: Path, folder: Path, description: Description) -> int:
    """Write Triton's configurations, and make a finished folder the next version of a model.

    Args:
        partial: folder with the file, in `folder`; it is renamed.
        folder: folder of the model.
        description: description of the file.

    Returns:
        The version number.
    """
    for file, text in triton_files(description).items():
        with whole_file(folder / file) as config:
            config.write_text(text)
    partial.chmod(0o755)
    return _put_in_place(partial, folder)


def _put_in_place(partial: Path, folder: Path) -> int:
    """Rename the folder to the next free version number and return that number.

    The rename is atomic, so a server that polls the repository never sees an incomplete model.
    """
    version = (versions(folder) or [0])[-1] + 1
    while True:
        try:
            os.rename(partial, folder / str(version))
            return version
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        version += 1
