"""Rows of features on disk: appended batch by batch, gone on with after a kill, taken away when they are too many."""

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
"""Of a file whose last rows are still missing."""

_SIZE_VARIABLE = "TLCLI_CACHE_GB"
_USUAL_SIZE_GB = 10.0
_GIVEN_UP_S = 86400
"""Without locks: an unfinished file that has not grown for so long was left by a process that ended."""

_HEADER = np.lib.format


def most_bytes() -> int:
    """How much all kept features may take: `$TLCLI_CACHE_GB` gigabytes, else 10.

    Raises:
        SettingsError: the variable is no such number.
    """
    given = os.environ.get(_SIZE_VARIABLE)
    try:
        gigabytes = float(given) if given else _USUAL_SIZE_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise SettingsError(f"{_SIZE_VARIABLE}={given}: expected a number of gigabytes, 0 or more")
    return int(gigabytes * 1e9)


def open_rows(path: Path, rows: int) -> Embeddings | None:
    """The kept features, float32 `[rows, d]`, mapped into memory, and noted as used; None if there are none, or the file is damaged."""
    try:
        kept: Embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if kept.ndim != 2 or len(kept) != rows or kept.dtype != np.float32:
        return None
    with suppress(OSError):  # where another user's files may be read only
        os.utime(path)
    return kept


class UnfinishedRows:
    """A NumPy file of `[rows, d]` that ends early. present: the whole rows in it."""

    def __init__(self, file: BinaryIO, rows: int) -> None:
        """Look what is there already; what is no beginning of such a file is thrown away."""
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

    def cut(self, rows: int) -> None:
        """Let `rows` of those present stay, 0 to begin anew."""
        self.present = rows
        self._file.seek(self._start + rows * self._row_bytes if rows else 0)
        self._file.truncate()
        if not rows:
            self._start = 0

    def append(self, batch: Embeddings) -> None:
        """Write `[N, d]` at the end, where the next process finds it."""
        if not self._start:
            shape = (self._rows, batch.shape[1])
            _HEADER.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            self._start, self._row_bytes = self._file.tell(), 4 * batch.shape[1]
        self._file.write(batch.astype("<f4", copy=False).tobytes())
        self._file.flush()
        self.present += len(batch)


@contextmanager
def growing_rows(path: Path, rows: int, on_wait: Callable[[], None] = lambda: None) -> Iterator[UnfinishedRows | None]:
    """Write `path` row by row, in a file beside it that becomes `path` when the block ends.

    What a block has written before its process was killed, interrupted, or ran out of room, the next block finds. After an error of
    an image or of the network nothing is left: it would be wrong the next time too. One process at a time: another waits, and gets
    None if the file is whole then. Where the file system has no locks, each process writes a file of its own, and all of it.

    Args:
        path: of the whole file.
        rows: how many it is to have.
        on_wait: called before waiting for another process.

    Raises:
        OSError: the folder cannot be made or written to.
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
    """Open a file, made if it is not there, for this process alone, until the process ends, however it does.

    Where the file system has no locks, another file is opened, beside `path`, which no other process knows.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file, unshared(file.fileno()):
            try:
                if not try_lock(file.fileno()):
                    on_wait()
                    wait_for_lock(file.fileno())
            except LocksUnsupportedError:
                break
            if _is_at(file, path):  # else the process that had it has finished, or removed it
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


def prune(folder: Path, most: int, in_use: Collection[Path]) -> None:
    """Take away the files of `folder` that were least recently used, until the rest have `most` bytes or fewer.

    Those in `in_use` stay, and what another process is writing.
    """
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process takes away as well
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        if path not in in_use and _take_away(path):
            total -= size


def _take_away(path: Path) -> bool:
    try:
        if path.suffix != UNFINISHED:
            path.unlink(missing_ok=True)
            return True
        with path.open("r+b") as file:
            if _is_being_written(file):
                return False
            path.unlink(missing_ok=True)  # while nobody else can begin to write it
    except OSError:
        return False
    return True


def _is_being_written(unfinished: BinaryIO) -> bool:
    try:
        return not try_lock(unfinished.fileno())
    except LocksUnsupportedError:
        return time.time() - os.fstat(unfinished.fileno()).st_mtime < _GIVEN_UP_S
