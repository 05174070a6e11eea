"""Files are written whole or not at all."""

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


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""Errors of a file that cannot be written, as opposed to one that cannot be read, or a connection."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Those that are told from another library's text."""

_OF_RUST = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
"""Form in which libraries written in Rust, such as safetensors, report an error of the system."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name `path` in an error of the system that names no file, or a temporary one, such as a full disk's.

    Raises:
        OSError: the system's, with `path` as its `filename`, whichever library met it.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception, path: Path) -> int | None:
    """The system's number of an error that should name `path`; None if there is none, or if the error names another file."""
    if isinstance(error, OSError):
        named = error.filename
        if isinstance(named, str | os.PathLike) and not _is_temporary(Path(named), path):
            return None
        return error.errno if error.errno in _UNWRITABLE or named is not None else None
    if isinstance(error, TlcliError):
        return None
    text = str(error)
    found = _OF_RUST.search(text)
    if found and int(found[1] or found[2]) in _UNWRITABLE:
        return int(found[1] or found[2])
    return next((number for number in _FULL if os.strerror(number) in text), None)


def is_unwritable(error: BaseException) -> bool:
    """True if the system refused to write a file that the error names: a full disk, a quota, permissions."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is not None


def _is_temporary(named: Path, path: Path) -> bool:
    """True if `named` is what `whole_file` or a library has made beside `path`."""
    return named.name.startswith(".") and named.parent == path.parent


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The rename is atomic (POSIX rename(2)), so a reader sees the old file or the new one, never a part.
    The temporary name keeps the suffix of `path`, for writers that choose a format by it.

    Raises:
        OSError: the folder cannot be made or written to (a full disk included); `path` is then untouched, and named.
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
    """Make and return an empty folder: `path`, or where that holds something already `path-2`, `path-3`, ...: nothing is overwritten.

    Raises:
        SettingsError: `path` is a file.
        OSError: it cannot be made.
    """
    wanted = Path(path)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.is_dir():
                if number == 1:
                    raise SettingsError(f"{wanted}: is a file, a folder was expected: name another") from error
            elif number == 1 and not any(folder.iterdir()):
                return folder
    raise AssertionError("there is always another number")
