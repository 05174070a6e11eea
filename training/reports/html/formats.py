"""Formatting of numbers and settings for display. The templates use these functions as filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlcli.training.metrics.significance import wilson_interval
from tlcli.training.runs.summary import AnyScores


def plain(value: Any) -> str:
    """Format the value of a setting. None is shown as a dash."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(f"{key}={item}" for key, item in value.items()) or "–"
        case list() | tuple():
            return ", ".join(map(plain, value))
        case _:
            return str(value)


def percent(value: float | None) -> str:
    """Format a fraction in [0, 1] as a percentage. None is shown as a dash."""
    return "–" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    """Format a number with four decimals. None is shown as a dash."""
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, depending on its length."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def interval(part: AnyScores) -> str:
    """Format the 95 % Wilson confidence interval of a part's top-1 accuracy."""
    low, high = wilson_interval(part.right, part.count) if part.count else (0.0, 1.0)
    return f"{100 * low:.1f} to {100 * high:.1f} %"
