"""Comparison of runs by their settings and metrics, with McNemar's test for two runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tlcli.training.metrics.significance import McNemar, mcnemar
from tlcli.training.runs.summary import AnyScores, RunSummary

_WHERE = ("output", "name", "data_dir", "workers")
"""Settings that affect the location or duration of a run, but not its results."""

_MOST_LISTED = 8
"""Maximum number of items to show for a setting that is a list."""

_HIGHER_IS_BETTER = ("top1", "macro_f1")

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Side-by-side comparison of runs.

    rows: one row per run, with its name under `run`, the settings that differ, and its metrics. Lists are shown as text.
    differing: settings that differ between the runs, followed by package versions that differ.
    others: runs evaluated on different images than the first run, so that their metrics cannot be compared with it.
    test: McNemar's test for two runs on the same validation images; None for more than two runs, or if a run has no predictions.
    """

    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    others: tuple[str, ...]
    test: McNemar | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `rows` in which at least one run has a value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return tuple(name for name in names if any(row.get(name) is not None for row in self.rows))

    def ordered_by(self, column: str) -> tuple[Row, ...]:
        """Return the rows sorted by a column. Metrics are sorted best first and settings ascending; rows without a value come last.

        Raises:
            KeyError: the column does not exist.
        """
        if column not in self.columns:
            raise KeyError(column)
        known = [row for row in self.rows if row.get(column) is not None]
        falling = column.endswith(_HIGHER_IS_BETTER) and column not in self.differing
        in_order = sorted(known, key=lambda row: _sortable(row[column]), reverse=falling)
        return (*in_order, *(row for row in self.rows if row.get(column) is None))


def compare(records: Sequence[RunSummary]) -> Comparison:
    """Compare the settings and metrics of several runs.

    Args:
        records: summaries of at least two runs.
    """
    names = _names(records)
    settings = [{**_settings(record), **_versions(record)} for record in records]
    keys = dict.fromkeys(key for row in settings for key in row)
    differing = tuple(key for key in keys if len({repr(row.get(key)) for row in settings}) > 1)
    rows = tuple(
        {"run": name, **{key: _shown(row.get(key)) for key in differing}, **_figures(record)}
        for name, record, row in zip(names, records, settings, strict=True)
    )
    others = tuple(name for name, record in zip(names, records, strict=True) if not same_images(records[0], record))
    test = mcnemar(*_right(records[0], records[1])) if len(records) == 2 and not others and _paired(*records) else None
    return Comparison(rows, differing, others, test)


def same_images(first: RunSummary, second: RunSummary) -> bool:
    """Return True if both runs were evaluated on the same validation images.

    This is the case if their data sets have the same content, or if both used the same data set and its validation part has the same
    images and classes. Its training part may have changed in between.
    """
    if first.config.dataset_fingerprint == second.config.dataset_fingerprint:
        return True
    same_place = first.config.asked.get("dataset") == second.config.asked.get("dataset")
    return same_place and bool(first.predictions) and _labels(first) == _labels(second)


def _paired(first: RunSummary, second: RunSummary) -> bool:
    """Return True if the predictions of both runs can be compared image by image."""
    return bool(first.predictions) and _labels(first) == _labels(second)


def _labels(record: RunSummary) -> dict[str, str]:
    return {prediction.name: prediction.label for prediction in record.predictions}


def _right(first: RunSummary, second: RunSummary) -> tuple[list[bool], list[bool]]:
    """Return, for each run, whether each prediction is correct, in the image order of the first run."""
    second_right = {row.name: row.predicted == row.label for row in second.predictions}
    return [row.predicted == row.label for row in first.predictions], [second_right[row.name] for row in first.predictions]


def _names(records: Sequence[RunSummary]) -> list[str]:
    """Return the folder names of the runs, or their paths if the names are not unique."""
    short = [record.path.resolve().name for record in records]
    return short if len(set(short)) == len(short) else [str(record.path) for record in records]


def _settings(record: RunSummary) -> Row:
    resolved = {name: value for name, value in record.settings.items() if name not in _WHERE}
    return {
        **resolved,
        "classes": resolved.get("classes") or list(record.config.classes),
        "device": record.config.device or resolved.get("device"),
    }


def _versions(record: RunSummary) -> Row:
    return {f"{name} version": version for name, version in record.config.versions.items()}


def _figures(record: RunSummary) -> Row:
    metrics = {f"{part}_{name}": value for part, scores in record.parts.items() for name, value in _metrics(scores)}
    return {**metrics, "best_epoch": record.results.best_epoch, "seconds": round(record.seconds, 1)}


def _metrics(scores: AnyScores) -> Iterable[tuple[str, float | None]]:
    return ("top1", scores.top1), ("macro_f1", scores.macro_f1), ("loss", scores.loss), ("ece", scores.ece)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or None
    if isinstance(value, list | tuple):
        return ",".join(map(str, value[:_MOST_LISTED])) + (f" and {len(value) - _MOST_LISTED} more" if len(value) > _MOST_LISTED else "")
    return value


def _sortable(value: Any) -> tuple[bool, Any]:
    """Return a sort key that orders numbers before text."""
    return (False, value) if isinstance(value, bool | int | float) else (True, str(value))
