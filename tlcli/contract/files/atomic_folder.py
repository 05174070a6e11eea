"""Atomic folder writes, the counterpart of `tlcli.contract.files.atomic_file` for folders."""

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
"""Age in seconds above which a temporary folder counts as abandoned on file systems without locks."""

_RANDOM = "[a-z0-9_]{8}"
"""Pattern of the random suffix in names that `tempfile` creates."""


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent`, and remove it when the block ends unless it was renamed.

    Folders with the same prefix that killed processes left behind are removed first.

    Raises:
        OSError: the folder cannot be created, or a file in it cannot be written, in which case the error names `parent`.
    """
    with ExitStack() as lifetime:
        with ExitStack() as creation:  # hold the parent's lock until the new folder is locked, so that no other process removes it as stale
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
    """Yield an empty temporary folder next to `path`, and rename it to `path` if the block ends without an error.

    If another process created the same folder first, that folder is kept and this one is discarded. An empty folder at `path` is
    replaced.

    Raises:
        OSError: the folder cannot be created or written to. Nothing is written to `path` in this case.
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
