"""Cache files of feature rows, which are written batch by batch, can be resumed after a kill, and are evicted by total size."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import ImageError, SettingsError, WeightsError
from tlcli.contract.files.file_lock import LocksUnsupportedError, try_lock, unshared, wait_for_lock

Embeddings = npt.NDArray[np.float32]

UNFINISHED = ".partial"
"""Suffix of files that are not yet complete."""

_SIZE_VARIABLE = "TLCLI_CACHE_GB"
_DEFAULT_SIZE_GB = 10.0
_ABANDONED_AFTER_S = 86400
"""Age in seconds after which an unfinished file is considered abandoned, on file systems without locks."""

_HEADER = np.lib.format


def max_cache_bytes() -> int:
    """Return the size limit of the feature cache in bytes: `$TLCLI_CACHE_GB` gigabytes, or 10 if the variable is unset.

    Raises:
        SettingsError: the variable is not a valid number of gigabytes.
    """
    value = os.environ.get(_SIZE_VARIABLE)
    try:
        gigabytes = float(value) if value else _DEFAULT_SIZE_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise SettingsError(f"{_SIZE_VARIABLE}={value}: expected a number of gigabytes, 0 or more")
    return int(gigabytes * 1e9)


def open_rows(path: Path, rows: int) -> Embeddings | None:
    """Memory-map stored features and mark the file as recently used.

    Returns:
        The features, float32 `[rows, d]`, or None if the file is missing or damaged.
    """
    try:
        stored: Embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if stored.ndim != 2 or len(stored) != rows or stored.dtype != np.float32:
        return None
    with suppress(OSError):  # another user's files may be read-only
        os.utime(path)
    return stored


class UnfinishedRows:
    """NumPy file with an array `[rows, d]` that is still being written.

    present: number of complete rows in the file.
    """

    def __init__(self, file: BinaryIO, rows: int) -> None:
        """Read the header of `file`. If the file does not start with a matching array, it is treated as having no rows."""
        self._file = file
        self._rows = rows
        self._start = self._row_bytes = self.present = 0
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            if _HEADER.read_magic(file) != (1, 0):
                return
            shape, fortran_order, dtype = _HEADER.read_array_header_1_0(file)
        except (ValueError, EOFError):
            return
        if len(shape) == 2 and shape[0] == rows and dtype == np.dtype("<f4") and not fortran_order:
            self._start, self._row_bytes = file.tell(), 4 * shape[1]
            self.present = (size - self._start) // self._row_bytes

    def truncate(self, rows: int) -> None:
        """Truncate the file to its first `rows` rows. 0 also discards the header."""
        self.present = rows
        self._file.seek(self._start + rows * self._row_bytes if rows else 0)
        self._file.truncate()
        if not rows:
            self._start = 0

    def append(self, batch: Embeddings) -> None:
        """Append a batch of rows `[N, d]` and flush the file, so that another process can resume after them."""
        if not self._start:
            shape = (self._rows, batch.shape[1])
            _HEADER.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            self._start, self._row_bytes = self._file.tell(), 4 * batch.shape[1]
        self._file.write(batch.astype("<f4", copy=False).tobytes())
        self._file.flush()
        self.present += len(batch)


@contextmanager
def growing_rows(path: Path, rows: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[UnfinishedRows | None]:
    """Write the rows of `path` to a temporary file in the same folder, and rename it to `path` when the block ends.

    If the process is killed or interrupted, or the disk is full, the rows written so far are kept for the next call. After an `ImageError`
    or a `WeightsError`, no rows are kept, since the same error would occur again. If another process is writing the file, wait for it;
    the block then receives None if the file is complete. On a file system without locks, each process writes its own complete file.

    Args:
        path: complete file to write.
        rows: number of rows in the complete file.
        on_wait: callback before waiting for another process.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(UNFINISHED), on_wait) as (file, unfinished):
        if open_rows(path, rows) is not None:
            unfinished.unlink()
            yield None
            return
        try:
            yield UnfinishedRows(file, rows)
        except (ImageError, WeightsError):
            unfinished.unlink()
            raise
        file.flush()
        os.fsync(file.fileno())
        os.replace(unfinished, path)


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[tuple[BinaryIO, Path]]:
    """Open or create a file and lock it exclusively. The lock is released when this process ends, even if it is killed.

    On a file system without locks, create a file with a unique name in the same folder instead, so that no other process uses it.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file, unshared(file.fileno()):
            try:
                if not try_lock(file.fileno()):
                    on_wait()
                    wait_for_lock(file.fileno())
            except LocksUnsupportedError:
                break
            if _is_at(file, path):  # otherwise the previous holder has renamed or removed the file
                yield file, path
                return
    path.unlink(missing_ok=True)
    own = path.with_name(f"{path.stem}.{uuid4().hex}{UNFINISHED}")
    with own.open("x+b") as file:
        yield file, own


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def prune(folder: Path, limit: int, in_use: Collection[Path]) -> None:
    """Delete the least recently used files in `folder` until at most `limit` bytes remain.

    Files in `in_use` and files that another process is writing are kept.
    """
    files = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may be pruning too
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        if path not in in_use and _remove(path):
            total -= size


def _remove(path: Path) -> bool:
    try:
        if path.suffix != UNFINISHED:
            path.unlink(missing_ok=True)
            return True
        with path.open("r+b") as file:
            if _is_being_written(file):
                return False
            path.unlink(missing_ok=True)  # while the lock keeps other processes from writing it
    except OSError:
        return False
    return True


def _is_being_written(unfinished: BinaryIO) -> bool:
    try:
        return not try_lock(unfinished.fileno())
    except LocksUnsupportedError:
        return time.time() - os.fstat(unfinished.fileno()).st_mtime < _ABANDONED_AFTER_S
