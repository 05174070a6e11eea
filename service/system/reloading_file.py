"""Files that are reloaded when they change: certificates and tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from tlcli.contract.errors import SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ReloadingFile(Generic[T]):
    """Value read from one or more files, read again when one of them has changed. Safe to use from several threads.

    If the changed files cannot be used, for example because they are half written, the old value stays and the log says so.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Read the files for the first time.

        Args:
            what: name of the value in the log.
            paths: files to watch.
            read: reads the value; raises SettingsError if the files cannot be used.

        Raises:
            SettingsError: see `read`.
        """
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def get(self) -> T:
        """Return the value of the files as they are now, or as they were when they could last be used."""
        with self._lock:
            stamps = self._look()  # before reading: a change in the meantime is read again
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._read()
                except SettingsError as error:
                    logger.error("%s changed but cannot be used, keeping the old one: %s", self._what, error)
                else:
                    logger.info("%s changed: the new one is in use", self._what)
            return self._value

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
