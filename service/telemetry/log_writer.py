"""Log handler that never blocks: lines wait in a bounded queue, and a background thread writes them."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time

_LINES = 4096
_FLUSH_S = 1.0
"""Time limit in seconds for writing the queued lines."""


class LogWriter(logging.Handler):
    """Handler that writes lines to a file descriptor from a background thread. If the reader stalls, lines are dropped and counted."""

    def __init__(self, descriptor: int, lines: int = _LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(lines)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record, or drop it if the queue is full."""
        try:
            if self._dropped and self._lines.qsize() < self._lines.maxsize // 2:
                self._lines.put_nowait(self._line(self._drop_record(self._dropped)))
                self._dropped = 0
            self._lines.put_nowait(self._line(record))
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001  # the record cannot be formatted: react like logging's own handlers
            self.handleError(record)

    def flush(self) -> None:
        """Wait until the queued lines are written, for at most one second."""
        until = time.monotonic() + _FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def _drop_record(self, dropped: int) -> logging.LogRecord:
        message = "%d log lines were dropped: the reader was too slow"
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # another process made it non-blocking: the rest of the line is lost
                time.sleep(0.01)
            except OSError:  # the reader has gone
                pass
            finally:
                self._lines.task_done()
