"""Progress reporting for long tasks, independent of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Callback `advance(n)` that adds n completed units to the progress. It may be called from any thread."""


class ProgressFactory(Protocol):
    """Factory of progress bars: `with progress("Reading images", total) as advance: advance(1)`."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Open a progress bar.

        Args:
            description: short label, capitalized.
            total: sum of all counts that will be passed to `advance`.
        """
        ...


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """Discard all progress. This is the default `ProgressFactory`."""
    yield lambda count: None
