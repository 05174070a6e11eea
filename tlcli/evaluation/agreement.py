"""Comparison of a network's reduced-precision file with its float file: scores, accuracy and maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import Agreement, MapAgreement
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.localisation import points_at
from tlcli.evaluation.perturbation import Bytes, Flags, Indices, Values, at_input_size

MAP_IMAGES = 200
"""Maximum number of images on which maps are compared."""
COSTLY_IMAGES = 4
"""Maximum number of images on which the maps of `COSTLY` methods are compared."""

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Shown:
    """Image on which two files are compared.

    image: input image, `[H, W, 3]`.
    label: class of the image; None if unknown.
    region: mask of the object in the input, `[H, W]`; None if unknown.
    """

    image: Bytes
    label: int | None = None
    region: Flags | None = None


@dataclass(frozen=True)
class Images:
    """Set of images on which two files are compared.

    count: number of images; at least one.
    source: description of the images, stored with the result.
    show: function that loads an image by its index.
    """

    count: int
    source: str
    show: Callable[[int], Shown]


@dataclass
class _Answers:
    """Accumulator for comparisons of the logits, with one entry per image.

    same: True if both files have the same top-1 class.
    finite: True if the second file's logits are finite.
    correct: pair for the first and the second file, each True if the top-1 class is the label; only for images with a label.
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
    """Accumulator for each batch's run time with the second file relative to the first file."""

    ratios: list[float] = field(default_factory=list)

    def add(self, before_s: float, after_s: float) -> None:
        self.ratios.append(after_s / before_s)

    def median(self) -> float:
        """Return the median over the batches. The first batch is the warm-up and counts only if it is the only one."""
        return float(np.median(self.ratios[1:] or self.ratios))


@dataclass
class _MapPairs:
    """Accumulator for comparisons of one map.

    correlations: rank correlation of the two files' maps for each image where it is defined.
    hits: pair for the first and the second file, each True if the map points at the object; only for images with a region.
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
    """Comparison of selected maps of two files on an evenly spaced subset of the images."""

    def __init__(self, models: tuple[Model, Model], methods: Sequence[str], count: int, most: int) -> None:
        """Create a comparison of `methods` on at most `most` of `count` images."""
        self.pairs = {name: _MapPairs() for name in methods}
        self._models = models
        self._chosen = set(evenly_spaced(count, most))

    def add(self, start: int, examples: Sequence[Shown], images: Bytes, classes: Indices) -> None:
        """Compare the maps of a batch.

        Args:
            start: index of the batch's first image.
            examples: images of the batch.
            images: input images of the batch, `[n, H, W, 3]`.
            classes: class to explain in each image, `[n]`.
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

    Maps are computed with both files for the top-1 class of `before`, and compared on an evenly spaced subset of the images.

    Args:
        before: model from the float file.
        after: model from the reduced-precision file, with the same maps.
        batch: images to compare on.
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
    """Return the fraction of True among the first flags and among the second flags; None for both if there are no flags."""
    if not flags:
        return None, None
    first, second = np.mean(flags, axis=0)
    return float(first), float(second)


def _timed_logits(model: Model, images: Bytes) -> tuple[Values, float]:
    """Run the model on images and return the logits and the duration in seconds."""
    began = time.perf_counter()
    logits = model.run(images).logits
    return logits, time.perf_counter() - began


def rank_correlation(first: Values, second: Values) -> float | None:
    """Return Spearman's rank correlation over the positions of two maps `[h, w]`. Ties share the mean of their ranks.

    A map that is constant or not finite has no ranking. Return 0 if only one of the maps has a ranking, and None if neither has.
    """
    ranks = [rankdata(values, axis=None) if np.isfinite(values).all() else np.zeros(values.size) for values in (first, second)]
    a, b = (values - values.mean() for values in ranks)
    norms = float(np.sqrt((a @ a) * (b @ b)))
    if norms > 0:
        return float(a @ b) / norms
    return 0.0 if a.any() or b.any() else None
