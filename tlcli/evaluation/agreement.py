"""Comparison of two files of one network: scores, accuracy and maps of a reduced-precision file and of the float file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.model.description import Agreement, MapAgreement
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.localisation import points_at
from tlcli.evaluation.perturbation import Bytes, Flags, Indices, Values, at_input_size

MAP_IMAGES = 200
"""Maximum number of images on which maps are compared."""
COSTLY = ("ablationcam",)
"""Methods that run everything after the layer once per channel."""
COSTLY_IMAGES = 4
"""Maximum number of images on which the maps of `COSTLY` methods are compared."""

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Shown:
    """An image on which two files are compared.

    image: the input, `[H, W, 3]`.
    label: its class; None if unknown.
    region: the object's position in the input, `[H, W]`; None if unknown.
    """

    image: Bytes
    label: int | None = None
    region: Flags | None = None


@dataclass(frozen=True)
class Images:
    """Images on which two files are compared.

    count: number of images, at least one.
    source: description of the images for the record.
    show: function that loads an image by its index.
    """

    count: int
    source: str
    show: Callable[[int], Shown]


@dataclass
class _Answers:
    """Accumulator of the figures of the logits, one entry per image.

    same: both files have the same top-1 class.
    finite: the second file's logits are finite.
    correct: the top-1 class is the label, in the first file and in the second; only for images with a label.
    """

    same: list[bool] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    correct: list[tuple[bool, bool]] = field(default_factory=list)

    def add(self, examples: Sequence[Shown], before: Values, after: Values) -> None:
        for example, first, second in zip(examples, before, after, strict=True):
            class_before, class_after = int(first.argmax()), int(second.argmax())
            self.same.append(class_before == class_after)
            self.finite.append(bool(np.isfinite(second).all()))
            if example.label is not None:
                self.correct.append((example.label == class_before, example.label == class_after))


@dataclass
class _Timing:
    """Accumulator of the time of each batch in the second file, relative to the first."""

    ratios: list[float] = field(default_factory=list)

    def add(self, before_s: float, after_s: float) -> None:
        self.ratios.append(after_s / before_s)

    def median(self) -> float:
        """Return the median over the batches; the first, which warms up, only counts if there is no other."""
        return float(np.median(self.ratios[1:] or self.ratios))


@dataclass
class _MapPairs:
    """Accumulator of one map's figures.

    correlations: rank correlation of the two files' maps, one per image that has one.
    hits: the map points at the object, in the first file and in the second; only for images with a region.
    """

    correlations: list[float] = field(default_factory=list)
    hits: list[tuple[bool, bool]] = field(default_factory=list)

    def add(self, before: Values, after: Values, region: Flags | None) -> None:
        correlation = rank_correlation(before, after)
        if correlation is not None:
            self.correlations.append(correlation)
        if region is not None and region.any():
            height, width = region.shape
            first, second = (points_at(at_input_size(values, width, height), region) for values in (before, after))
            self.hits.append((first, second))

    def summary(self) -> MapAgreement:
        pointing_before, pointing = _means(self.hits)
        return MapAgreement(
            images=len(self.correlations),
            rank_correlation=float(np.mean(self.correlations)) if self.correlations else None,
            rank_correlation_median=float(np.median(self.correlations)) if self.correlations else None,
            pointing_before=pointing_before,
            pointing=pointing,
        )


class _MapComparison:
    """Comparison of some maps of two files on a subset of the images, spread evenly."""

    def __init__(self, models: tuple[Model, Model], methods: Sequence[str], count: int, most: int) -> None:
        """Compare `methods` on at most `most` of `count` images."""
        self.pairs = {name: _MapPairs() for name in methods}
        self._models = models
        self._chosen = set(evenly_spaced(count, most))

    def add(self, start: int, examples: Sequence[Shown], images: Bytes, classes: Indices) -> None:
        """Compare the maps of a batch.

        Args:
            start: index of its first image.
            examples: the images of the batch.
            images: their inputs, `[n, H, W, 3]`.
            classes: the class to explain in each, `[n]`.
        """
        rows = [row for row in range(len(examples)) if start + row in self._chosen]
        if not rows or not self.pairs:
            return
        before, after = (model.run(images[rows], classes[rows, None], list(self.pairs)).maps for model in self._models)
        for name, pairs in self.pairs.items():
            for position, row in enumerate(rows):
                pairs.add(before[name][position, 0], after[name][position, 0], examples[row].region)


def compare(before: Model, after: Model, batch: Images) -> Agreement:
    """Compare two files on the same images.

    Maps are computed in both files for the class that `before` ranks first. They are compared on a subset of the images, spread evenly.

    Args:
        before: the float file.
        after: the reduced-precision file, with the same maps.
        batch: the images.
    """
    answers, timing = _Answers(), _Timing()
    graph_maps = [output for output in before.description.maps if output.in_graph]
    comparisons = [
        _MapComparison((before, after), [output.name for output in graph_maps if (output.method in COSTLY) == is_costly], batch.count, most)
        for is_costly, most in ((False, MAP_IMAGES), (True, COSTLY_IMAGES))
    ]
    for start in range(0, batch.count, _BATCH_SIZE):
        examples = [batch.show(index) for index in range(start, min(start + _BATCH_SIZE, batch.count))]
        images = np.stack([example.image for example in examples])
        (logits_before, before_s), (logits_after, after_s) = (_timed_logits(model, images) for model in (before, after))
        timing.add(before_s, after_s)
        answers.add(examples, logits_before, logits_after)
        for comparison in comparisons:
            comparison.add(start, examples, images, logits_before.argmax(1).astype(np.int64))
    pairs = {name: pairs for comparison in comparisons for name, pairs in comparison.pairs.items()}
    top1_before, top1 = _means(answers.correct)
    return Agreement(
        images=batch.count,
        source=batch.source,
        top1_before=top1_before,
        top1=top1,
        agreement=float(np.mean(answers.same)),
        finite=float(np.mean(answers.finite)),
        time=timing.median(),
        maps={output.name: pairs[output.name].summary() for output in graph_maps},
    )


def _means(flags: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None]:
    """Return the share of True among the first flags and among the second; None without any flags."""
    if not flags:
        return None, None
    first, second = np.mean(flags, axis=0)
    return float(first), float(second)


def _timed_logits(model: Model, images: Bytes) -> tuple[Values, float]:
    """Run the images; return the logits, and the seconds that this took."""
    began = time.perf_counter()
    logits = model.run(images).logits
    return logits, time.perf_counter() - began


def rank_correlation(first: Values, second: Values) -> float | None:
    """Return Spearman's rank correlation over the positions of two maps `[h, w]`. Equal values share the mean of their ranks.

    A map that is constant or not finite has no ranks: the result is 0 if the other map has some, and None if neither has.
    """
    ranks = [rankdata(values, axis=None) if np.isfinite(values).all() else np.zeros(values.size) for values in (first, second)]
    a, b = (values - values.mean() for values in ranks)
    norms = float(np.sqrt((a @ a) * (b @ b)))
    if norms > 0:
        return float(a @ b) / norms
    return 0.0 if a.any() or b.any() else None
