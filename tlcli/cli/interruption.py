"""Handling of Ctrl-C and SIGTERM. A command cleans up, prints how to resume, and exits with the code that shells expect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tlcli.contract.errors import ImageError, ResourceError

_UNFINISHED = (KeyboardInterrupt, OSError, MemoryError, ResourceError, ImageError)
"""Errors that end a command but leave its work in a state that can be resumed."""


class Interrupted(KeyboardInterrupt):  # as its base
    """Exception raised for a signal that ends the command.

    exit_code: 130 for SIGINT (Ctrl-C), 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Install signal handlers that raise `Interrupted` in the main thread.

    The first SIGINT or SIGTERM raises the exception; a second one ends the process immediately. A process that ignores SIGINT, such as a
    background command in a script, continues to ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def describe_interruption(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an interrupted command.

    Args:
        error: a `KeyboardInterrupt`, or click's `Abort` with its cause.
    """
    number = error.exit_code - 128 if isinstance(error, Interrupted) else int(signal.SIGINT)
    return f"stopped by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}", 128 + number


def _interrupt(number: int, frame: FrameType | None) -> None:
    for either in (signal.SIGINT, signal.SIGTERM):
        signal.signal(either, signal.SIG_DFL)
    raise Interrupted(number)


@contextmanager
def note_how_to_resume(way_on: Callable[[BaseException], str | None]) -> Iterator[None]:
    """Add a note on how to resume the work to an error that interrupts the context.

    Args:
        way_on: returns the note for an error, or None for no note.
    """
    try:
        yield
    except _UNFINISHED as error:
        note = way_on(error)
        if note is not None and "--resume" not in str(error):
            error.add_note(note)
        raise
