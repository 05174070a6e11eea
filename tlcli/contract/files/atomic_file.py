"""Atomic file writes. Readers see either the old file or the complete new file, never a partial one."""

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

    The additional byte lets the caller detect files that are too large.

    Raises:
        OSError: the file does not exist, cannot be read, or is neither a file nor a pipe, or a pipe's writer sends no data for 10 seconds.
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
    """Remove the temporary files of killed processes from a folder, those of `whole_file` and of safetensors used inside it.

    No other process may be writing to the folder.
    """
    for pattern in (".*.*", ".tmp*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""Error numbers that indicate failed writes rather than failed reads or connections."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers that are also recognised by their message text within another library's message."""

_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
"""Format in which libraries written in Rust, such as safetensors, report system errors."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add `path` to system errors raised in the block that name no file or only a temporary one, such as those of a full disk.

    Raises:
        OSError: the system error with `path` as its `filename`, regardless of which library reported it.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception, path: Path) -> int | None:
    """Return the system error number of an error that should name `path`, or None for any other error.

    Other errors are those without a system error number and those that name a different file.
    """
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
    """Return True for a system error that names a file that cannot be written: a full disk, an exceeded quota, missing permissions."""
    return isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is not None


def _is_temporary(named: Path, path: Path) -> bool:
    """Return True if `named` is a temporary file that `whole_file` or a library created next to `path`."""
    return named.name.startswith(".") and named.parent == path.parent


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file next to `path`, and rename it to `path` if the block ends without an error.

    The rename is atomic (POSIX rename(2)), so readers see either the old file or the complete new file. The temporary name keeps the
    suffix of `path`, for writers that choose a format by suffix.

    Raises:
        OSError: the folder cannot be created or written to, for example because the disk is full. The error names `path`; an existing
            file there is not modified.
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
    """Create and return an empty folder without overwriting anything: `path`, or `path-2`, `path-3`, ... if `path` is not empty.

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
                    raise SettingsError(f"{first} is a file: expected a folder") from error
            elif number == 1 and not any(folder.iterdir()):
                return folder
    raise AssertionError("count() never ends")
