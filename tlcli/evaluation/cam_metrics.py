"""Names of the map metrics, and the columns of the result table."""

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
"""Names of the metrics that `--metrics` accepts."""

NEED_TRUTH = (POINTING, ENERGY)
"""Metrics that require boxes or masks."""


@dataclass(frozen=True)
class Column:
    """Column of the result table. Its values are fractions, or half the difference of two fractions.

    name: column name in files.
    metric: metric in `METRICS` that the column belongs to.
    title: human-readable heading.
    higher_is_better: True if higher values are better, False if lower values are better.
    shown: True if the column is drawn and printed; other columns are only written to files.
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
    """Return the columns of the given metrics in table order."""
    return tuple(column for column in COLUMNS if column.metric in metrics)
