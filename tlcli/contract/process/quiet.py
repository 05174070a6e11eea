"""Context manager that silences the output of libraries. Their exceptions are not affected."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Suppress printed output, warnings, and log messages below ERROR within the block.

    Args:
        loggers: names of the loggers to silence; if none are given, the root logger is silenced.
    """
    levels = {logger: logger.level for logger in (map(logging.getLogger, loggers) if loggers else [logging.getLogger()])}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
