"""Log whose reader may stall: a bounded number of lines waits in memory, and a thread writes them."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time

_LINES = 4096
_FLUSH_S = 1.0
"""At the end, for lines that still wait."""


class LogWriter(logging.Handler):
    """Writes each line to a file descriptor from a thread. Where nobody reads there, lines are dropped and counted, and nobody waits."""

    def __init__(self, descriptor: int, lines: int = _LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(lines)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line behind those that wait, or drop it."""
        try:
            if self._dropped and self._lines.qsize() < self._lines.maxsize // 2:
                self._lines.put_nowait(self._line(self._record_of(self._dropped)))
                self._dropped = 0
            self._lines.put_nowait(self._line(record))
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001  # as logging has it: a record that cannot be formatted
            self.handleError(record)

    def flush(self) -> None:
        """Wait until what waits is written, a second at most."""
        until = time.monotonic() + _FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _record_of(self, dropped: int) -> logging.LogRecord:
        message = "%d lines of the log were dropped: nothing read them"
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # somebody made it non-blocking: what does not fit now is lost
                time.sleep(0.01)
            except OSError:  # whoever read it has gone
                pass
            finally:
                self._lines.task_done()
