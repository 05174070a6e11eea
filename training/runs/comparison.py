"""Comparison of runs by their settings and metrics, with McNemar's test for two runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.significance import McNemar, mcnemar
from tlcli.training.runs.split_file import read_fingerprints
from tlcli.training.runs.summary import AnyScores, Prediction, RunSummary
from tlcli.training.settings.model_arguments import argument_text

_WHERE = ("output", "name", "data_dir", "workers")
"""Settings that affect the location or duration of a run, but not its results."""

_MOST_LISTED = 8
"""Maximum number of items to show for a setting that is a list."""

_HIGHER_IS_BETTER = ("top1", "macro_f1", "mean_ap", "micro_f1")

Row = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """Predictions of two runs for the same validation images.

    right: for each run, whether it classifies each image correctly; with several labels per image, whether all of its labels are right.
    seen: number of validation images of either run that are left out, because their content is in the training split of one of them. None
        if a run does not record the contents of its images, as in earlier versions.
    """

    right: tuple[list[bool], list[bool]]
    seen: int | None

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.right[0])

    @property
    def top1(self) -> tuple[float, ...]:
        """Share of these images that each run classifies correctly, in [0, 1]. There must be images."""
        return tuple(sum(right) / self.count for right in self.right)


@dataclass(frozen=True)
class Comparison:
    """Side-by-side comparison of runs.

    rows: one row per run, with its name under `run`, the settings that differ, and its metrics. Lists are shown as text.
    differing: settings that differ between the runs, followed by package versions that differ.
    others: runs evaluated on different images than the first run, so that their metrics cannot be compared with it.
    pairs: predictions of two runs for images that neither was trained on; None for more than two runs, or without common images.
    test: McNemar's test of the pairs; None without pairs.
    """

    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    others: tuple[str, ...]
    pairs: Pairs | None
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
    pairs = _unseen_pairs(records[0], records[1], comparable=not others) if len(records) == 2 else None
    return Comparison(rows, differing, others, pairs, mcnemar(*pairs.right) if pairs is not None and pairs.count else None)


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


def _unseen_pairs(first: RunSummary, second: RunSummary, *, comparable: bool) -> Pairs | None:
    """Return the predictions for the validation images that both runs have in common and neither was trained on.

    Images are the same if they have the same name, in runs of the same validation images, or else the same content and class.

    Args:
        first, second: summaries of the runs.
        comparable: True if both were validated on the same images.

    Returns:
        The pairs, or None if the runs have no image in common.
    """
    runs = (first, second)
    by_name = comparable and _paired(first, second)
    contents = [images for images in (read_fingerprints(run.path) for run in runs) if images is not None]
    if len(contents) < len(runs):
        if not by_name:
            return None
        rows, seen = [{row.name: row for row in run.predictions} for run in runs], None
    else:
        trained_on = {content for images in contents for content in images.get("train", {}).values()}
        validated_on = [images.get("val", {}) for images in contents]
        rows = [_unseen(run, images, trained_on, by_name) for run, images in zip(runs, validated_on, strict=True)]
        seen = len(trained_on & {content for images in validated_on for content in images.values()})
    common = [key for key in rows[0] if key in rows[1]]
    if not common and not seen:
        return None
    first_right, second_right = ([row[key].predicted == row[key].label for key in common] for row in rows)
    return Pairs((first_right, second_right), seen)


def _unseen(run: RunSummary, contents: Mapping[str, str], trained_on: Collection[str], by_name: bool) -> dict[str, Prediction]:
    """Return the predictions for images whose content is not in `trained_on`, by name, or by content and class."""
    return {
        row.name if by_name else f"{content}/{row.label}": row
        for row in run.predictions
        if (content := contents.get(row.name)) is not None and content not in trained_on
    }


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
    parts: dict[str, AnyScores | MultiLabelScores] = {**record.parts, **record.multi_label_parts}
    metrics = {f"{part}_{name}": value for part, scores in parts.items() for name, value in _metrics(scores)}
    return {**metrics, "best_epoch": record.results.best_epoch, "seconds": round(record.seconds, 1)}


def _metrics(scores: AnyScores | MultiLabelScores) -> Iterable[tuple[str, float | None]]:
    if isinstance(scores, MultiLabelScores):
        return ("mean_ap", scores.mean_ap), ("macro_f1", scores.macro_f1), ("micro_f1", scores.micro_f1), ("loss", scores.loss)
    return ("top1", scores.top1), ("macro_f1", scores.macro_f1), ("loss", scores.loss), ("ece", scores.ece)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={argument_text(item)}" for key, item in value.items()) or None
    if isinstance(value, list | tuple):
        return ",".join(map(str, value[:_MOST_LISTED])) + (f" and {len(value) - _MOST_LISTED} more" if len(value) > _MOST_LISTED else "")
    return value


def _sortable(value: Any) -> tuple[bool, Any]:
    """Return a sort key that orders numbers before text."""
    return (False, value) if isinstance(value, bool | int | float) else (True, str(value))
