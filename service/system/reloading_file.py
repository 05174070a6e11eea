"""Files that are renewed while the server runs: certificates and tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from tlcli.contract.errors import SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Renewed(Generic[T]):
    """What is made of some files, made anew when one of them has changed. Safe to use from several threads.

    Files that cannot be used when they have changed, such as half-written ones, leave it as it was, and a line in the log says so.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """what: for the log.

        Raises:
            SettingsError: what `read` raises, and raises of files that cannot be used.
        """
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def get(self) -> T:
        """As the files are now, or were when they could be used last."""
        with self._lock:
            stamps = self._look()  # before they are read: what changes meanwhile is read again
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._read()
                except SettingsError as error:
                    logger.error("%s changed and cannot be used, the old one stays: %s", self._what, error)
                else:
                    logger.info("%s changed: the new one is in use", self._what)
            return self._value

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
