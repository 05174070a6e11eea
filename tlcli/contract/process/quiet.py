"""Context manager that silences libraries; their failures still arrive as exceptions."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Suppress printed output and warnings within the block, and log messages below ERROR.

    Args:
        loggers: names of the loggers to silence; without any, the root logger.
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
