"""Atomic file writes: readers see the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from tlcli.contract.errors import SettingsError, TlcliError

_PIPE_WAIT_S = 10.0
_READ_BYTES = 16 * 1024 * 1024


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """Read a file or a pipe (such as a shell's `<(...)`), up to one byte more than `max_bytes`.

    Raises:
        OSError: no such file, no permission to read it, or neither a file nor a pipe; a pipe whose writer is silent for 10 seconds.
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
        chunks: list[bytes] = []
        remaining = max_bytes + 1
        while remaining > 0 and (chunk := _read_some(handle, min(remaining, _READ_BYTES), str(path))):
            chunks.append(chunk)
            remaining -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(handle)


def _read_some(handle: int, size: int, path: str) -> bytes:
    deadline = time.monotonic() + _PIPE_WAIT_S
    while True:
        with suppress(BlockingIOError):
            return os.read(handle, size)
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"no data in the pipe for {_PIPE_WAIT_S:g} s", path)


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed `whole_file`, or safetensors inside it, left in a folder without other writers."""
    for pattern in (".*.*", ".tmp*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""Error numbers of failed writes, as opposed to failed reads or connections."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers that are also recognised by their text in another library's message."""

_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
"""Format in which libraries written in Rust, such as safetensors, report an error of the system."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add `path` to system errors that name no file or only a temporary one, such as a full disk.

    Raises:
        OSError: the system's error with `path` as its `filename`, whichever library reported it.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception, path: Path) -> int | None:
    """Return the system's number of an error that should name `path`; None if it has no number or names another file."""
    if isinstance(error, OSError):
        named = error.filename
        if isinstance(named, str | os.PathLike) and not _is_temporary(Path(named), path):
            return None
        return error.errno if error.errno in _UNWRITABLE or named is not None else None
    if isinstance(error, TlcliError):
        return None
    text = str(error)
    match = _RUST_OS_ERROR.search(text)
    if match and int(match[1] or match[2]) in _UNWRITABLE:
        return int(match[1] or match[2])
    return next((number for number in _FULL if os.strerror(number) in text), None)


def is_unwritable(error: BaseException) -> bool:
    """Check for an error of the system that names a file it cannot write: a full disk, a quota, permissions."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is not None


def _is_temporary(named: Path, path: Path) -> bool:
    """Check for a temporary file that `whole_file` or a library created next to `path`."""
    return named.name.startswith(".") and named.parent == path.parent


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` when the block ends without an error.

    The rename is atomic (POSIX rename(2)), so a reader sees the old file or the new one, never a part.
    The temporary name keeps the suffix of `path`, for writers that choose a format by it.

    Raises:
        OSError: the folder cannot be created or written to (a full disk included). The error names `path`, which is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(target):
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
            with suppress(OSError):
                temporary.unlink()
            raise


def fresh_folder(path: str | Path) -> Path:
    """Create and return an empty folder: `path`, or `path-2`, `path-3`, ... if that is not empty. Never overwrites anything.

    Raises:
        SettingsError: `path` is a file.
        OSError: the folder cannot be created.
    """
    first = Path(path)
    for number in count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.is_dir():
                if number == 1:
                    raise SettingsError(f"{first}: is a file, a folder was expected: name another") from error
            elif number == 1 and not any(folder.iterdir()):
                return folder
    raise AssertionError("count() never ends")
