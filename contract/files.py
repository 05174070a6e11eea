"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sweep(folder: Path) -> None:
    """Remove what a `whole_file` that was killed, and safetensors within it, has left in a folder that nobody else writes to."""
    for pattern in (".*.*", ".tmp*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The rename is atomic (POSIX rename(2)), so a reader sees the old file or the new one, never a part.
    The temporary name keeps the suffix of `path`, for writers that choose a format by it.

    Raises:
        OSError: the folder cannot be made or written to (a full disk included); `path` is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
