"""Ctrl-C and SIGTERM: a command cleans up, says how to resume, and exits with the code that a shell expects."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tlcli.contract.errors import ImageError, ResourceError

_UNFINISHED = (KeyboardInterrupt, OSError, MemoryError, ResourceError, ImageError)
"""Errors that end a command whose work is kept and can be resumed."""


class Interrupted(KeyboardInterrupt):  # as its base
    """Signal that ends the command. exit_code: 130 for SIGINT (Ctrl-C), 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Raise `Interrupted` in the main thread at the first SIGINT or SIGTERM; a second one ends the process at once.

    A process that ignores SIGINT, such as a background command of a script, continues to ignore it.
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
    """Add a note to an error that interrupts the block: how to resume the work.

    Args:
        way_on: returns the note for an error; None for no note.
    """
    try:
        yield
    except _UNFINISHED as error:
        note = way_on(error)
        if note is not None and "--resume" not in str(error):
            error.add_note(note)
        raise
