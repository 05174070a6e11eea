"""Folders are written whole or not at all, as files are by `contract.files`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without an error.

    If another process finished the same folder first, its folder stays and ours is dropped. An empty folder
    at `path` is replaced.

    Raises:
        OSError: the folder cannot be made or written to; nothing is then left at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path.is_dir() and any(path.iterdir())):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
