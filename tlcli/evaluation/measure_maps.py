"""Measurement of maps, which computes every metric of every method image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError, RequestError
from tlcli.contract.images.heatmap import to_unit
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY, require_method
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import FIRST_RANKED, Model
from tlcli.evaluation.baselines import BASELINES, CENTRE, RANDOM, centre_map, random_map
from tlcli.evaluation.cam_dataset import Images, Sample
from tlcli.evaluation.cam_metrics import (
    DELETION,
    DROP,
    ENERGY,
    INCREASE,
    INSERTION,
    METRICS,
    NEED_TRUTH,
    POINTING,
    ROAD,
    Column,
    columns_of,
)
from tlcli.evaluation.faithfulness import apply_map, area, blur, deletion, drop, increase, insertion
from tlcli.evaluation.localisation import energy_inside, points_at
from tlcli.evaluation.perturbation import Bytes, Floats, Score, Values, at_input_size, class_score, ranking
from tlcli.evaluation.road import SHARES, noise_for, road
from tlcli.training.runtime.progress import ProgressFactory, silent

LEFT_OUT_BY_DEFAULT = ("scorecam", *COSTLY)
"""Methods excluded by default, because they run the network or its head once per channel or position and take minutes instead of
seconds."""


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    methods: names of the model's maps.
    metrics: names from `tlcli.evaluation.cam_metrics.METRICS`.
    steps: number of equal fractions of the pixels for deletion and insertion.
    seed: seed for the random map and for ROAD's noise.
    class_ids: class id to explain for each class of the data set; None explains the model's top-1 class for each image.
    softmax: explain the class's probability instead of its logit.
    batch_size: maximum number of inputs per model run.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS
    steps: int = 20
    seed: int = 0
    class_ids: Mapping[str, int] | None = None
    softmax: bool = False
    batch_size: int = 32

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods, followed by the baselines."""
        return (*self.methods, *BASELINES)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the result table for these metrics."""
        return columns_of(self.metrics)


@dataclass(frozen=True)
class ImageResult:
    """Result of one image.

    name: path of the image relative to the data set's folder.
    class_name: name of the image's class in the data set.
    class_id: id of the explained class.
    probability: the model's probability for the explained class.
    values: values by method and column.
    """

    name: str
    class_name: str
    class_id: int
    probability: float
    values: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Mean:
    """Mean over images with its standard error.

    mean: mean value.
    error: standard error of the mean; nan for a single image.
    count: number of images.
    """

    mean: float
    error: float
    count: int


@dataclass
class Measurement:
    """Results of a measurement.

    settings: settings of the measurement.
    images: results by image.
    curves: for `deletion` and `insertion`, the class's mean probability after 0, 1, ... steps, by method.
    without_region: number of images without a box or mask; they do not count in the metrics that need one.
    outside: number of images whose object is cropped away; they do not count in these metrics either.
    """

    settings: Settings
    images: list[ImageResult] = field(default_factory=list)
    curves: dict[str, dict[str, Floats]] = field(default_factory=dict)
    without_region: int = 0
    outside: int = 0

    def figure(self, method: str, column: str) -> Mean | None:
        """Return the mean for a cell of the table; None if no image has a value."""
        values = [image.values[method][column] for image in self.images if column in image.values[method]]
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Mean(float(np.mean(values)), error, len(values))


def choose_methods(model: Model, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the maps to measure.

    Args:
        model: model that computes the maps.
        names: names of maps. A method name that is not itself a map name selects the method's maps of every layer. `all` selects every map;
            None selects every map except the slow ones in `LEFT_OUT_BY_DEFAULT`.

    Raises:
        RequestError: the model has no maps, or lacks one of them.
    """
    maps, where = model.description.maps, f"model {model.description.name!r}"
    if not maps:
        raise RequestError(f"{where} has no maps to measure: export it again with `tlcli export`")
    if names is None:
        quick = tuple(output.name for output in maps if output.method not in LEFT_OUT_BY_DEFAULT)
        if not quick:
            raise RequestError(f"{where} has only slow maps ({', '.join(model.description.methods)}): request them with --cam all")
        return quick
    chosen: list[str] = []
    for name in names:
        expanded = [] if name in model.description.methods else [output.name for output in maps if name in (output.method, "all")]
        chosen += expanded or [require_method(name, model.description.methods, where)]
    return tuple(dict.fromkeys(chosen))


def choose_metrics(images: Images, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to compute, in the order of `METRICS`.

    Args:
        images: images to evaluate.
        names: names of metrics; None for all that the data set supports.

    Raises:
        RequestError: a metric is unknown.
        DatasetError: a metric needs boxes or masks, but the data set has none.
    """
    if names is None:
        return tuple(name for name in METRICS if images.truth is not None or name not in NEED_TRUTH)
    for name in names:
        if name not in METRICS:
            raise RequestError(f"--metrics: unknown metric {name!r}: expected one or more of {', '.join(METRICS)}")
        if name in NEED_TRUTH and images.truth is None:
            raise DatasetError(
                f"{images.where}: --metrics {name} needs boxes or masks of the objects, and there is neither a boxes.json nor a"
                " masks folder: add one, or leave the metric out"
            )
    return tuple(name for name in METRICS if name in names)


def measure(model: Model, images: Images, settings: Settings, progress: ProgressFactory = silent) -> Measurement:
    """Measure maps on images.

    Maps are enlarged to the input size with bilinear interpolation. Like a served model, the model runs on 8-bit images, so perturbed
    images are rounded to the nearest grey level.

    Args:
        model: model that computes the maps and, through `Model.run`, scores the perturbed images.
        images: images to measure on, read as they are needed.
        settings: settings of the measurement.
        progress: progress display over the images.

    Raises:
        DatasetError: no image can be read, or all requested metrics need boxes and no image has a visible one.
        RequestError: the model does not have a requested method.
    """
    measurement = Measurement(settings)
    sums: dict[str, dict[str, Floats]] = {}
    with progress("Measuring maps", len(images)) as advance:
        for sample in images.read(model.description.preprocessing):
            measurement.without_region += sample.region is None
            measurement.outside += sample.region is not None and not sample.region.any()
            measurement.images.append(_measure_image(model, sample, settings, sums))
            advance(1)
    number = len(measurement.images)
    if not any(image.values[name] for image in measurement.images for name in settings.names):
        raise DatasetError(
            f"{images.where}: none of the {number} images has a box that the network sees ({measurement.without_region} without a box,"
            f" {measurement.outside} cropped away): the paths in boxes.json must be relative to its folder"
        )
    measurement.curves = {kind: {name: total / number for name, total in totals.items()} for kind, totals in sums.items()}
    return measurement


def _measure_image(model: Model, sample: Sample, settings: Settings, sums: dict[str, dict[str, Floats]]) -> ImageResult:
    """Measure all maps of an image and add their curves to `sums`."""
    preprocessing = model.description.preprocessing
    target = FIRST_RANKED if settings.class_ids is None else settings.class_ids[sample.class_name]
    answer = explain(model, sample.image[None], (target,), settings.methods, softmax=settings.softmax, batch_size=settings.batch_size)
    assert answer.classes is not None  # maps were requested
    class_id = int(answer.classes[0, 0])
    probability = float(answer.scores[0, class_id])
    score = class_score(model, class_id, settings.batch_size)
    probe = _Probe(sample, probability, score, settings, preprocessing)
    values: dict[str, dict[str, float]] = {}
    for name, enlarged in _enlarged({name: answer.maps[name][0, 0] for name in settings.methods}, sample, settings, preprocessing).items():
        values[name], curves = probe.measure(enlarged)
        for kind, curve in curves.items():
            totals = sums.setdefault(kind, {})
            totals[name] = totals[name] + curve if name in totals else curve
    return ImageResult(sample.name, sample.class_name, class_id, probability, values)


def _enlarged(model_maps: dict[str, Values], sample: Sample, settings: Settings, preprocessing: Preprocessing) -> dict[str, Values]:
    """Return the maps of all methods and baselines at the input size. The random map is enlarged from the first method's map size."""
    height, width = model_maps[settings.methods[0]].shape
    low = {**model_maps, RANDOM: random_map(height, width, settings.seed, sample.number)}
    maps = {name: at_input_size(values, preprocessing.width, preprocessing.height) for name, values in low.items()}
    return {**maps, CENTRE: centre_map(preprocessing.height, preprocessing.width)}


class _Probe:
    """Measurement of maps on one image. Arrays shared by all of its maps are computed once."""

    def __init__(self, sample: Sample, probability: float, score: Score, settings: Settings, preprocessing: Preprocessing) -> None:
        self._sample = sample
        self._probability = probability
        self._score = score
        self._metrics = settings.metrics
        self._steps = settings.steps
        self._colour: Bytes = np.array([round(255 * value) for value in preprocessing.mean], dtype=np.uint8)
        self._blurred = blur(sample.image) if INSERTION in settings.metrics else sample.image
        self._noise: npt.NDArray[np.float64] = noise_for(sample.image.shape, settings.seed, sample.number)

    def measure(self, values: Values) -> tuple[dict[str, float], dict[str, Floats]]:
        """Measure an unnormalised map at the input size. Return its values by column and its curves by metric."""
        image, score, metrics = self._sample.image, self._score, self._metrics
        unit = to_unit(values)
        order = ranking(values)
        figures: dict[str, float] = {}
        curves: dict[str, Floats] = {}
        if DELETION in metrics:
            curves[DELETION] = deletion(image, order, score, self._steps, self._colour)
        if INSERTION in metrics:
            curves[INSERTION] = insertion(image, order, score, self._steps, self._blurred)
        figures.update({kind: area(curve) for kind, curve in curves.items()})
        if ROAD in metrics:
            result = road(image, order, score, self._noise)
            figures |= {"road": result.combined, "road_morf": float(result.morf.mean()), "road_lerf": float(result.lerf.mean())}
        if DROP in metrics or INCREASE in metrics:
            after = float(score([apply_map(image, unit, self._colour)])[0])
            if DROP in metrics:
                figures[DROP] = drop(self._probability, after)
            if INCREASE in metrics:
                figures[INCREASE] = increase(self._probability, after)
        region = self._sample.region
        if region is not None and region.any():
            if POINTING in metrics:
                figures[POINTING] = float(points_at(values, region))
            if ENERGY in metrics:
                figures[ENERGY] = energy_inside(unit, region)
        return figures, curves


def probes_per_map(settings: Settings) -> int:
    """Return the number of perturbed images that the model runs on to measure one map of one image."""
    curve = settings.steps + 1
    costs = {DELETION: curve, INSERTION: curve, ROAD: 2 * len(SHARES)}
    return sum(costs.get(name, 0) for name in settings.metrics) + (DROP in settings.metrics or INCREASE in settings.metrics)
