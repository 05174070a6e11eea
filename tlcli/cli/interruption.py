"""Ctrl-C and SIGTERM: a command cleans up, says how to go on, and leaves with the exit code that a shell expects."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tlcli.contract.errors import ImageError, ResourceError

_UNFINISHED = (KeyboardInterrupt, OSError, MemoryError, ResourceError, ImageError)
"""Errors that end a command whose work is kept: it can be resumed."""


class Interrupted(KeyboardInterrupt):  # as its base
    """A signal that ends the command. exit_code: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Raise `Interrupted` in the main thread at the first SIGINT or SIGTERM; a second one ends the process at once.

    What ignores SIGINT, such as a command in a script's background, goes on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for either in (signal.SIGINT, signal.SIGTERM):
        signal.signal(either, signal.SIG_DFL)
    raise Interrupted(number)


@contextmanager
def told_how_to_go_on(way_on: Callable[[BaseException], str | None]) -> Iterator[None]:
    """Add a note to what interrupts the block: how its work is taken up again.

    Args:
        way_on: the note, given the error; None for none.
    """
    try:
        yield
    except _UNFINISHED as error:
        note = way_on(error)
        if note is not None and "--resume" not in str(error):
            error.add_note(note)
        raise
