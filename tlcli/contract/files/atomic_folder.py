"""Atomic folder writes, as `tlcli.contract.files.atomic_file` has for files."""

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

_STALE_S = 86400
"""Age from which a temporary folder counts as abandoned, on file systems without locks."""

_RANDOM = "[a-z0-9_]{8}"
"""Suffix that `tempfile` gives a name."""


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent`, and remove it when the block ends unless it was renamed.

    Folders of the same prefix that killed processes left are removed first.

    Raises:
        OSError: the folder cannot be created, or a file in it cannot be written; the error then names `parent`.
    """
    with ExitStack() as lifetime:
        with ExitStack() as creation:  # holds the parent's lock until the new folder has one, so that nobody takes it for a stale one
            with suppress(LocksUnsupportedError):
                wait_for_lock(_open(creation, parent))
            _remove_stale(parent, prefix)
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
            lifetime.callback(shutil.rmtree, temporary, ignore_errors=True)
            with suppress(LocksUnsupportedError):
                try_lock(_open(lifetime, temporary))
        with named_errors(parent):
            yield temporary


def _remove_stale(parent: Path, prefix: str) -> None:
    for folder in parent.iterdir():
        if re.fullmatch(re.escape(prefix) + _RANDOM, folder.name):
            with suppress(OSError), ExitStack() as opened:
                if _is_stale(_open(opened, folder)):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: int) -> bool:
    try:
        return try_lock(folder)
    except LocksUnsupportedError:
        return time.time() - os.fstat(folder).st_mtime > _STALE_S


def _open(stack: ExitStack, folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    stack.enter_context(unshared(descriptor))
    return descriptor


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; rename it to `path` when the block ends without an error.

    If another process finished the same folder first, its folder stays and this one is dropped. An empty folder
    at `path` is replaced.

    Raises:
        OSError: the folder cannot be created or written to; nothing is then left at `path`.
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
