"""How long work tells what it is doing, without knowing whether a terminal listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""`advance(n)`: another n of the total are done. May be called from any thread."""


class ProgressFactory(Protocol):
    """Makes one progress bar: `with progress("Reading images", total) as advance: advance(1)`."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """`description`: a few words, beginning with a capital. `total`: the sum of all that `advance` will be given."""
        ...


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """The default: says nothing."""
    yield lambda count: None
