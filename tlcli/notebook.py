"""Progress display for notebooks, with one line per task that is updated in place."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tlcli.cli.console import Console

_REFRESH_S = 0.2


def in_notebook() -> bool:
    """Return True in a Jupyter kernel, and False in a terminal, including IPython."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


class NotebookConsole(Console):
    """Console that shows progress as HTML."""

    def say(self, message: str) -> None:
        """Print a message."""
        print(message)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar of `total` steps in the context.

        Yields:
            Function to call with the number of steps completed since the last call.
        """
        if total == 0:
            yield lambda _: None
            return
        bar = _Bar(description, total)
        yield bar.advance
        bar.finish()


class _Bar:
    def __init__(self, description: str, total: int) -> None:
        from IPython.display import display

        self._description = html.escape(description)
        self._total = total
        self._done = 0
        self._began = self._drawn = time.monotonic()
        self._lock = threading.Lock()
        self._handle: Any = display(self._content(), display_id=True)  # type: ignore[no-untyped-call]

    def advance(self, steps: int) -> None:
        """Advance the bar by `steps`. May be called from any thread."""
        with self._lock:
            self._done += steps
            if time.monotonic() - self._drawn < _REFRESH_S:
                return
            self._drawn = time.monotonic()
        self._handle.update(self._content())

    def finish(self) -> None:
        """Replace the bar with a summary line."""
        self._handle.update(_Html(f"{self._description}: {self._done} of {self._total} in {time.monotonic() - self._began:.1f} s"))

    def _content(self) -> _Html:
        return _Html(
            f"<progress value='{self._done}' max='{self._total}'></progress> {self._description}: {self._done} of {self._total}",
            f"{self._description}: {self._done} of {self._total}",
        )


class _Html:
    """HTML output with a plain-text fallback for frontends that do not support HTML."""

    def __init__(self, text: str, plain: str | None = None) -> None:
        self._text, self._plain = text, text if plain is None else plain

    def _repr_html_(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return html.unescape(self._plain)
