"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PIPE_WAIT_S = 10.0
_READ_BYTES = 16 * 1024 * 1024


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """Read a file, or a pipe that somebody writes to (a shell's `<(...)`), up to one byte more than `max_bytes`.

    Raises:
        OSError: no such file, one that may not be read, or anything else that is no file; a pipe whose writer is silent for 10 seconds.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # without O_NONBLOCK, opening a pipe waits for its writer
    except ValueError as error:
        raise OSError(f"{path!r}: {error}") from error
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", str(path))
        parts: list[bytes] = []
        left = max_bytes + 1
        while left > 0 and (part := _read_some(handle, min(left, _READ_BYTES), str(path))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _read_some(handle: int, size: int, path: str) -> bytes:
    deadline = time.monotonic() + _PIPE_WAIT_S
    while True:
        with suppress(BlockingIOError):
            return os.read(handle, size)
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"a pipe to which nobody wrote for {_PIPE_WAIT_S:g} s", path)


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
