"""Findings of a cleaning: images of a data set that deserve a look, most suspicious first in each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tlcli.evaluation.cleaning.confident_learning import find_label_errors
from tlcli.evaluation.cleaning.image_quality import Quality, blurred, dark, oddly_sized, outlying
from tlcli.evaluation.cleaning.images import LabelledParts
from tlcli.evaluation.cleaning.out_of_sample import out_of_sample
from tlcli.training.features.near_duplicates import NEIGHBOURS, across, groups_of, near_duplicates
from tlcli.training.features.neighbours import Neighbours, nearest_neighbours, nearest_of_others, unit_rows
from tlcli.training.features.perceptual_hash import Thumbnail
from tlcli.training.runtime.progress import ProgressFactory, silent

Kind = Literal["label-error", "near-duplicate", "outlier", "dark", "blurred", "near-uniform", "odd-size"]

KINDS: dict[Kind, str] = {
    "label-error": "Probable label errors",
    "near-duplicate": "Near-duplicates",
    "outlier": "Outliers",
    "dark": "Dark images",
    "blurred": "Blurred images",
    "near-uniform": "Nearly one colour",
    "odd-size": "Odd sizes",
}
"""Titles of the kinds of findings."""

MIN_IMAGES = 5
"""Number of images that a class needs for its labels to be judged, one for each fold."""

OTHERS = 3
"""Number of nearest neighbours of other classes that are shown next to an image."""

_OUTLIER_NEIGHBOURS = 10


class Finding(NamedTuple):
    """Image that deserves a look.

    image: index of the image. score: number that orders the findings of a kind. detail: score in words.
    confident: True for a label error in the confident joint, and for a near-duplicate in another split; False for others.
    suggested: suggested class index; None without one. twin: index of the other image of a pair; None without one.
    others: nearest images of other classes, at most three.
    """

    kind: Kind
    image: int
    score: float
    detail: str
    confident: bool = False
    suggested: int | None = None
    twin: int | None = None
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Findings:
    """Result of a cleaning.

    rows: findings, in the order of `KINDS`. l2: chosen strength of the regression; None if labels could not be judged.
    not_judged: classes with too few images to judge their labels.
    """

    rows: tuple[Finding, ...]
    l2: float | None
    not_judged: tuple[str, ...]

    def of(self, kind: Kind) -> list[Finding]:
        """Return the findings of a kind, most suspicious first."""
        return [row for row in self.rows if row.kind == kind]


def find_issues(
    images: LabelledParts,
    features: npt.NDArray[np.float32],
    qualities: Sequence[Quality],
    thumbnails: Sequence[Thumbnail],
    seed: int = 0,
    progress: ProgressFactory = silent,
) -> Findings:
    """Find label errors, near-duplicates, outliers and poor images.

    Args:
        images: n images in splits.
        features: features of the images, float32 `[n, d]`.
        qualities, thumbnails: see `tlcli.evaluation.cleaning.images.look_at`.
        seed: seed of the folds of the cross-validation.
        progress: progress bar.
    """
    part = images.images
    rows = unit_rows(features)
    neighbours = nearest_neighbours(rows, NEIGHBOURS)
    pairs = near_duplicates(neighbours, thumbnails.__getitem__)
    splits = images.splits
    found: list[Finding] = []
    errors, l2, not_judged = _label_errors(images, part.labels, rows, groups_of(pairs, len(part)), seed, progress)
    found += errors
    crossing = set(across(pairs, splits))
    for pair in sorted(pairs, key=lambda pair: pair not in crossing):
        first, second = (pair.first, pair.second) if splits[pair.first] == "train" or pair not in crossing else (pair.second, pair.first)
        detail = f"similarity {pair.similarity:.3f}, {pair.distance} of 63 bits differ"
        found.append(Finding("near-duplicate", first, pair.similarity, detail, confident=pair in crossing, twin=second))
    found += _outliers(neighbours)
    found += _poor(images, part.names, qualities)
    return Findings(tuple(_with_others(found, rows, part.labels)), l2, not_judged)


def _label_errors(
    images: LabelledParts,
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int64],
    seed: int,
    progress: ProgressFactory,
) -> tuple[list[Finding], float | None, tuple[str, ...]]:
    counts = np.bincount(labels, minlength=len(images.classes))
    judged_classes = np.flatnonzero(counts >= MIN_IMAGES)
    not_judged = tuple(name for name, count in zip(images.classes, counts, strict=True) if 0 < count < MIN_IMAGES)
    if len(judged_classes) < 2:
        return [], None, not_judged
    judged = np.flatnonzero(np.isin(labels, judged_classes))
    own = np.searchsorted(judged_classes, labels[judged])
    predicted = out_of_sample(rows[judged], own, len(judged_classes), groups[judged], seed, progress)
    errors = find_label_errors(predicted.probabilities, own)
    found = []
    for place in errors.order[errors.is_listed[errors.order]].tolist():
        suggested = int(errors.suggested[place])
        score, other = float(errors.self_confidence[place]), float(predicted.probabilities[place, suggested])
        given_name, other_name = images.classes[judged_classes[own[place]]], images.classes[judged_classes[suggested]]
        found.append(
            Finding(
                "label-error",
                int(judged[place]),
                score,
                f"{given_name} {score:.3f}, {other_name} {other:.3f}",
                confident=bool(errors.is_error[place]),
                suggested=int(judged_classes[suggested]),
            )
        )
    return found, predicted.strength, not_judged


def _outliers(neighbours: Neighbours) -> list[Finding]:
    distances = 1 - neighbours.similarities[:, :_OUTLIER_NEIGHBOURS].astype(np.float64).mean(axis=1)
    chosen = np.flatnonzero(outlying(distances))
    ordered = chosen[np.argsort(-distances[chosen], kind="stable")].tolist()
    return [
        Finding("outlier", index, float(distances[index]), f"distance {distances[index]:.3f} to its nearest neighbours")
        for index in ordered
    ]


def _poor(images: LabelledParts, names: Sequence[str], qualities: Sequence[Quality]) -> list[Finding]:
    measures = list(qualities)
    uniform = np.array([name in images.near_uniform for name in names])
    is_dark = dark(measures)
    found = [
        Finding("dark", index, measures[index].brightness, f"brightness {measures[index].brightness:.2f}")
        for index in np.flatnonzero(is_dark & ~uniform).tolist()
    ]
    found += [
        Finding("blurred", index, measures[index].sharpness, f"sharpness {measures[index].sharpness:.4f}")
        for index in np.flatnonzero(blurred(measures) & ~uniform).tolist()
    ]
    found.sort(key=lambda finding: (finding.kind != "dark", finding.score))
    found += [Finding("near-uniform", index, 0.0, "nearly one colour") for index in np.flatnonzero(uniform).tolist()]
    found += [
        Finding(
            "odd-size", index, float(measures[index].width * measures[index].height), f"{measures[index].width} x {measures[index].height}"
        )
        for index in np.flatnonzero(oddly_sized(measures)).tolist()
    ]
    return found


def _with_others(found: Sequence[Finding], rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> list[Finding]:
    """Add the nearest images of other classes to each finding."""
    queries = np.array(sorted({finding.image for finding in found}), dtype=np.int64)
    if not len(queries):
        return []
    nearest = nearest_of_others(rows, labels, queries, OTHERS).indices
    others = {int(query): tuple(index for index in row if index >= 0) for query, row in zip(queries, nearest.tolist(), strict=True)}
    return [finding._replace(others=others[finding.image]) for finding in found]
