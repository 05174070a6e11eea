"""Metrics of maps, by name, and the columns of the result table."""

from __future__ import annotations

from dataclasses import dataclass

DELETION, INSERTION, ROAD, DROP, INCREASE, POINTING, ENERGY = METRICS = (
    "deletion",
    "insertion",
    "road",
    "average_drop",
    "increase",
    "pointing",
    "energy",
)
"""Metrics that `--metrics` takes."""

NEED_TRUTH = (POINTING, ENERGY)
"""Metrics that need boxes or masks."""


@dataclass(frozen=True)
class Column:
    """A column of the result table: a share, or half the difference of two shares.

    name: name in files.
    metric: the metric in `METRICS` that it belongs to.
    title: heading for people.
    higher_is_better: False if lower is better.
    shown: True if it is drawn and printed; other columns are only in the files.
    limits: smallest and largest possible value.
    """

    name: str
    metric: str
    title: str
    higher_is_better: bool
    shown: bool = True
    limits: tuple[float, float] = (0.0, 1.0)


COLUMNS = (
    Column("deletion", DELETION, "Deletion AUC", higher_is_better=False),
    Column("insertion", INSERTION, "Insertion AUC", higher_is_better=True),
    Column("road", ROAD, "ROAD", higher_is_better=True, limits=(-0.5, 0.5)),
    Column("road_morf", ROAD, "ROAD, most relevant first", higher_is_better=False, shown=False),
    Column("road_lerf", ROAD, "ROAD, least relevant first", higher_is_better=True, shown=False),
    Column("average_drop", DROP, "Average drop", higher_is_better=False),
    Column("increase", INCREASE, "Increase", higher_is_better=True),
    Column("pointing", POINTING, "Pointing game", higher_is_better=True),
    Column("energy", ENERGY, "Energy in box", higher_is_better=True),
)


def columns_of(metrics: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the columns of some metrics, in the table's order."""
    return tuple(column for column in COLUMNS if column.metric in metrics)
