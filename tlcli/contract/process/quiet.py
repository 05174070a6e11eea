"""Libraries that print their steps and log what they try, made to keep it to themselves; a failure still arrives as an exception."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Within it nothing is printed or warned of, and the loggers of those names, the root's if there is none, let errors alone through."""
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
