"""Several runs side by side: in what they differ, how they did, and whether two of them differ by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tlcli.training.metrics.significance import McNemar, mcnemar
from tlcli.training.runs.summary import Figures, Record

_WHERE = ("output", "name", "data_dir", "workers")
"""Settings that change where a run is and how long it takes, not what it finds."""

_MOST_LISTED = 8
"""Of a setting that is a list."""

_HIGHER_IS_BETTER = ("top1", "macro_f1")

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    rows: one a run: its name under `run`, then what differs, then its figures. A list is told as text.
    differing: the settings that are not the same in all of them, then the versions of packages.
    others: runs that were not judged on the images of the first one: their figures cannot be compared with its.
    test: of two runs on the same validation images; None for other numbers, or where a run keeps no predictions.
    """

    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    others: tuple[str, ...]
    test: McNemar | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Of `rows`, those in which any run has a value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return tuple(name for name in names if any(row.get(name) is not None for row in self.rows))

    def ordered_by(self, column: str) -> tuple[Row, ...]:
        """The rows, best first where `column` is a figure, ascending where it is a setting; those without a value last.

        Raises:
            KeyError: no such column.
        """
        if column not in self.columns:
            raise KeyError(column)
        known = [row for row in self.rows if row.get(column) is not None]
        falling = column.endswith(_HIGHER_IS_BETTER) and column not in self.differing
        in_order = sorted(known, key=lambda row: _sortable(row[column]), reverse=falling)
        return (*in_order, *(row for row in self.rows if row.get(column) is None))


def compare(records: Sequence[Record]) -> Comparison:
    """Put runs side by side.

    Args:
        records: two or more.
    """
    names = _names(records)
    settings = [{**_settings(record), **_versions(record)} for record in records]
    every = dict.fromkeys(name for one in settings for name in one)
    differing = tuple(name for name in every if len({repr(one.get(name)) for one in settings}) > 1)
    rows = tuple(
        {"run": name, **{key: _told(one.get(key)) for key in differing}, **_figures(record)}
        for name, record, one in zip(names, records, settings, strict=True)
    )
    others = tuple(name for name, record in zip(names, records, strict=True) if not same_images(records[0], record))
    test = mcnemar(*_right(records[0], records[1])) if len(records) == 2 and not others and _paired(*records) else None
    return Comparison(rows, differing, others, test)


def same_images(first: Record, second: Record) -> bool:
    """Whether both were judged on the same validation images.

    They were if their data sets are the same in content, and if it is one data set whose validation part names the same images with the
    same classes: its training part may have changed in between.
    """
    if first.config.dataset_fingerprint == second.config.dataset_fingerprint:
        return True
    same_place = first.config.asked.get("dataset") == second.config.asked.get("dataset")
    return same_place and bool(first.predictions) and _labels(first) == _labels(second)


def _paired(first: Record, second: Record) -> bool:
    """Whether their predictions can be laid side by side, image by image."""
    return bool(first.predictions) and _labels(first) == _labels(second)


def _labels(record: Record) -> dict[str, str]:
    return {one.name: one.label for one in record.predictions}


def _right(first: Record, second: Record) -> tuple[list[bool], list[bool]]:
    of_second = {one.name: one.predicted == one.label for one in second.predictions}
    return [one.predicted == one.label for one in first.predictions], [of_second[one.name] for one in first.predictions]


def _names(records: Sequence[Record]) -> list[str]:
    """The folders' names; where two are alike, their paths."""
    short = [record.path.resolve().name for record in records]
    return short if len(set(short)) == len(short) else [str(record.path) for record in records]


def _settings(record: Record) -> Row:
    resolved = {name: value for name, value in record.settings.items() if name not in _WHERE}
    return {
        **resolved,
        "classes": resolved.get("classes") or list(record.config.classes),
        "device": record.config.device or resolved.get("device"),
    }


def _versions(record: Record) -> Row:
    return {f"{name} version": version for name, version in record.config.versions.items()}


def _figures(record: Record) -> Row:
    of_parts = [(f"{part}_{name}", value) for part, figures in record.parts.items() for name, value in _of_part(figures)]
    return {**dict(of_parts), "best_epoch": record.results.best_epoch, "seconds": round(record.seconds, 1)}


def _of_part(figures: Figures) -> Iterable[tuple[str, float | None]]:
    return ("top1", figures.top1), ("macro_f1", figures.macro_f1), ("loss", figures.loss), ("ece", figures.ece)


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items()) or None
    if isinstance(value, list | tuple):
        return ",".join(map(str, value[:_MOST_LISTED])) + (f" and {len(value) - _MOST_LISTED} more" if len(value) > _MOST_LISTED else "")
    return value


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers before text."""
    return (False, value) if isinstance(value, bool | int | float) else (True, str(value))
