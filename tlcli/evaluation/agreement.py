"""Two files of one network side by side: how the answers and the maps of a smaller one differ from those of the one it was made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.model.description import Agreement, MapAgreement
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.localisation import points_at
from tlcli.evaluation.perturbation import Bytes, Flags, Values, at_input_size

MAP_IMAGES = 200
"""Maps are compared on so many images at most."""
COSTLY = ("ablationcam",)
COSTLY_IMAGES = 4
"""On so many those of methods that run what follows the layer once a channel."""

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Shown:
    """An image to compare two files on.

    image: the input, `[H, W, 3]`.
    label: its class, None if that is not known.
    region: where the object is in it, `[H, W]`, likewise.
    """

    image: Bytes
    label: int | None = None
    region: Flags | None = None


@dataclass(frozen=True)
class Images:
    """What two files are compared on.

    count: how many, at least one.
    source: what they are, for the record.
    show: reads one, by its number.
    """

    count: int
    source: str
    show: Callable[[int], Shown]


@dataclass
class _Pairs:
    """Of one map: its rank correlation in each image, and whether it points at the object, before and after."""

    correlations: list[float] = field(default_factory=list)
    hits: list[tuple[bool, bool]] = field(default_factory=list)

    def add(self, before: Values, after: Values, region: Flags | None) -> None:
        found = rank_correlation(before, after)
        if found is not None:
            self.correlations.append(found)
        if region is not None and region.any():
            height, width = region.shape
            first, second = (points_at(at_input_size(values, width, height), region) for values in (before, after))
            self.hits.append((first, second))

    def summary(self) -> MapAgreement:
        before, after = zip(*self.hits, strict=True) if self.hits else ((), ())
        return MapAgreement(
            images=len(self.correlations),
            rank_correlation=float(np.mean(self.correlations)) if self.correlations else None,
            rank_correlation_median=float(np.median(self.correlations)) if self.correlations else None,
            pointing_before=float(np.mean(before)) if before else None,
            pointing=float(np.mean(after)) if after else None,
        )


def compare(before: Model, after: Model, batch: Images) -> Agreement:
    """Ask both files about the same images.

    Maps are of the class that `before` ranks first, in both. They are compared on some of the images, spread evenly.

    Args:
        before: the float file.
        after: the smaller one, with the same maps.
        images: to ask about.
    """
    names = {one.name: one.method in COSTLY for one in before.description.maps if one.in_graph}
    pairs = {name: _Pairs() for name in names}
    mapped, costly = (set(evenly_spaced(batch.count, most)) for most in (MAP_IMAGES, COSTLY_IMAGES))
    same: list[bool] = []
    finite: list[bool] = []
    right: list[tuple[bool, bool]] = []
    times: list[float] = []
    for start in range(0, batch.count, _BATCH_SIZE):
        numbers = range(start, min(start + _BATCH_SIZE, batch.count))
        shown = [batch.show(number) for number in numbers]
        images = np.stack([one.image for one in shown])
        (logits, took), (others, other_took) = (_timed(model, images) for model in (before, after))
        times.append(other_took / took)
        first, second = logits.argmax(1), others.argmax(1)
        finite.extend(bool(np.isfinite(row).all()) for row in others)
        same.extend(int(a) == int(b) for a, b in zip(first, second, strict=True))
        right += [(one.label == a, one.label == b) for one, a, b in zip(shown, first, second, strict=True) if one.label is not None]
        for wanted, few in ((mapped, False), (costly, True)):
            rows = [number - start for number in numbers if number in wanted]
            methods = [name for name, is_costly in names.items() if is_costly == few]
            if not rows or not methods:
                continue
            targets = first[rows, None].astype(np.int64)
            old, new = (model.run(images[rows], targets, methods).maps for model in (before, after))
            for name in methods:
                for place, row in enumerate(rows):
                    pairs[name].add(old[name][place, 0], new[name][place, 0], shown[row].region)
    return Agreement(
        images=batch.count,
        source=batch.source,
        top1_before=float(np.mean([a for a, _ in right])) if right else None,
        top1=float(np.mean([b for _, b in right])) if right else None,
        agreement=float(np.mean(same)),
        finite=float(np.mean(finite)),
        time=float(np.median(times[1:] or times)),
        maps={name: of.summary() for name, of in pairs.items()},
    )


def _timed(model: Model, images: Bytes) -> tuple[Values, float]:
    """Logits, and the seconds they took."""
    began = time.perf_counter()
    logits = model.run(images).logits
    return logits, time.perf_counter() - began


def rank_correlation(first: Values, second: Values) -> float | None:
    """Spearman's, over the positions of two maps `[h, w]`; equal values share the mean of their ranks.

    Where one of them is constant, or not finite, there are no ranks: 0 if the other has some, None if neither has.
    """
    ranks = [rankdata(values, axis=None) if np.isfinite(values).all() else np.zeros(values.size) for values in (first, second)]
    a, b = (one - one.mean() for one in ranks)
    sizes = float(np.sqrt((a @ a) * (b @ b)))
    if sizes > 0:
        return float(a @ b) / sizes
    return 0.0 if a.any() or b.any() else None
