"""How long an image may take: one that takes longer makes way for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tlcli.contract.errors import TimeLimitError


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Cancel what is done inside when its time is over. A step that runs in a thread ends there, unheard, and is the last.

    Args:
        seconds: 0 for no limit.

    Raises:
        TimeLimitError: it was over.
    """
    limit = asyncio.timeout(seconds or None)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeLimitError(
            f"an image took more than the {seconds:g} s that this server gives it: ask for less (a Score-CAM for fewer channels),"
            " or when the server is less busy"
        ) from error
