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
    """Value that is read from one or more files and reloaded when any of them changes. Thread-safe.

    If the changed files cannot be used, for example because they are only half written, the old value is kept and an error is logged.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Read the files for the first time.

        Args:
            what: name of the value in log messages.
            paths: files to watch for changes.
            read: function that reads the value from the files. It raises SettingsError if they cannot be used.

        Raises:
            SettingsError: `read` cannot use the files.
        """
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def get(self) -> T:
        """Return the value, reloaded if the files have changed. If they cannot be used, return the last valid value."""
        with self._lock:
            stamps = self._look()  # taken before reading, so that a change during the read triggers another one
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
