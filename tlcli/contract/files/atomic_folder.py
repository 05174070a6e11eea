"""Folders are written whole or not at all, as files are by `tlcli.contract.files.atomic_file`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tlcli.contract.files.atomic_file import named_errors
from tlcli.contract.files.file_lock import LocksUnsupportedError, try_lock, unshared, wait_for_lock

_LEFT_BEHIND_S = 86400
"""Age of a temporary folder that was left by a process that ended, on file systems without locks."""

_RANDOM = "[a-z0-9_]{8}"
"""What `tempfile` ends a name with."""


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a fresh folder in `parent`, and remove it when the block ends unless it was renamed.

    Folders of the same prefix that killed processes have left are removed first.

    Raises:
        OSError: the folder cannot be made; `parent` is named where a file in it cannot be written.
    """
    with ExitStack() as held:
        with ExitStack() as meanwhile:  # nobody takes the new folder for one left behind before it is locked
            with suppress(LocksUnsupportedError):
                wait_for_lock(_open(meanwhile, parent))
            _remove_left_behind(parent, prefix)
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            with suppress(LocksUnsupportedError):
                try_lock(_open(held, temporary))
        with named_errors(parent):
            yield temporary


def _remove_left_behind(parent: Path, prefix: str) -> None:
    for folder in parent.iterdir():
        if re.fullmatch(re.escape(prefix) + _RANDOM, folder.name):
            with suppress(OSError), ExitStack() as opened:
                if _is_left_behind(_open(opened, folder)):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: int) -> bool:
    try:
        return try_lock(folder)
    except LocksUnsupportedError:
        return time.time() - os.fstat(folder).st_mtime > _LEFT_BEHIND_S


def _open(stack: ExitStack, folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    stack.enter_context(unshared(descriptor))
    return descriptor


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without an error.

    If another process finished the same folder first, its folder stays and ours is dropped. An empty folder
    at `path` is replaced.

    Raises:
        OSError: the folder cannot be made or written to; nothing is then left at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent, f".{path.name}.") as temporary:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path.is_dir() and any(path.iterdir())):
                raise
