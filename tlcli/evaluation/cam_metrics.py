"""What can be measured of a map, by name."""

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
"""What `--metrics` takes."""

NEED_TRUTH = (POINTING, ENERGY)
"""Those that need boxes or masks."""


@dataclass(frozen=True)
class Column:
    """A figure of the table: a share, or half the difference of two.

    metric: the one of `METRICS` that it belongs to.
    title: for people.
    higher_is_better: else lower is.
    shown: drawn and printed; the others are in the files only.
    limits: what it lies between.
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
    """The columns that these metrics fill, in the table's order."""
    return tuple(column for column in COLUMNS if column.metric in metrics)
