"""Every metric of every method on every image, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError, RequestError
from tlcli.contract.images.heatmap import to_unit
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import require_method
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
from tlcli.evaluation.faithfulness import area, blurred, deletion, drop, explained, increase, insertion
from tlcli.evaluation.localisation import energy_inside, points_at
from tlcli.evaluation.perturbation import Bytes, Floats, Score, Values, at_input_size, class_score, ranking
from tlcli.evaluation.road import SHARES, noise_for, road
from tlcli.training.runtime.progress import ProgressFactory, silent

LEFT_OUT_BY_DEFAULT = ("scorecam", "ablationcam")
"""Methods that run the network, or its head, once a channel: minutes where the others take seconds."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    methods: maps of the model, by name.
    metrics: of `tlcli.evaluation.cam_metrics.METRICS`.
    steps: equal shares of the pixels, for deletion and insertion.
    seed: of the random map and of ROAD's noise.
    class_ids: the class to explain for each class of the data set; None: the model's first for each image.
    softmax: maps of the class's probability instead of its logit.
    batch_size: inputs that the model is given at a time.
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
        """The methods, then the baselines."""
        return (*self.methods, *BASELINES)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The figures there will be."""
        return columns_of(self.metrics)


@dataclass(frozen=True)
class Judged:
    """One image. class_id: the class explained. probability: what the model gave it. values: method, then column, to figure."""

    name: str
    class_name: str
    class_id: int
    probability: float
    values: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Mean:
    """The mean over `count` images. error: its standard error, nan of a single image."""

    mean: float
    error: float
    count: int


@dataclass
class Measurement:
    """Everything that was found.

    images: those judged.
    curves: `deletion` and `insertion`, then method, to the class's mean probability after 0, 1, ... of the steps.
    without_region: images of which it is not known where the object is.
    outside: images whose object lies wholly outside of what the network sees; neither are in the metrics that need a box.
    """

    settings: Settings
    images: list[Judged] = field(default_factory=list)
    curves: dict[str, dict[str, Floats]] = field(default_factory=dict)
    without_region: int = 0
    outside: int = 0

    def figure(self, method: str, column: str) -> Mean | None:
        """One cell of the table; None if no image has a figure."""
        values = [image.values[method][column] for image in self.images if column in image.values[method]]
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Mean(float(np.mean(values)), error, len(values))


def choose_methods(model: Model, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The maps to judge.

    Args:
        model: whose.
        wanted: maps by name; a method that is no map's name stands for its maps of every layer; `all` for every map there is;
            None for every map but the slow ones, `LEFT_OUT_BY_DEFAULT`.

    Raises:
        RequestError: a map that the model does not have, or none at all.
    """
    maps, where = model.description.maps, f"model {model.description.name!r}"
    if not maps:
        raise RequestError(f"{where} has no maps to judge: export it again with `tlcli export`")
    if wanted is None:
        quick = tuple(output.name for output in maps if output.method not in LEFT_OUT_BY_DEFAULT)
        if not quick:
            raise RequestError(f"{where} has slow maps only ({', '.join(model.description.methods)}): ask for them with --cam all")
        return quick
    chosen: list[str] = []
    for name in wanted:
        of_method = [] if name in model.description.methods else [output.name for output in maps if name in (output.method, "all")]
        chosen += of_method or [require_method(name, model.description.methods, where)]
    return tuple(dict.fromkeys(chosen))


def choose_metrics(images: Images, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to compute: those wanted, or all that the data allows.

    Raises:
        RequestError: an unknown one.
        DatasetError: one that needs boxes, where there are none.
    """
    if wanted is None:
        return tuple(name for name in METRICS if images.truth is not None or name not in NEED_TRUTH)
    for name in wanted:
        if name not in METRICS:
            raise RequestError(f"--metrics: unknown metric {name!r}: expected one or more of {', '.join(METRICS)}")
        if name in NEED_TRUTH and images.truth is None:
            raise DatasetError(
                f"{images.where}: --metrics {name} needs to know where the objects are, and there is neither a boxes.json nor a"
                " masks folder: add one, or leave the metric out"
            )
    return tuple(name for name in METRICS if name in wanted)


def measure(model: Model, images: Images, settings: Settings, progress: ProgressFactory = silent) -> Measurement:
    """Judge the maps.

    They are judged at the input's size (bilinear). What the model is asked about are images of 8 bits, as a served model takes
    them: changed ones are rounded to the nearest grey level.

    Args:
        model: asked for the maps and, through `Model.run`, about the changed images.
        images: read as they are needed.
        settings: what to measure.
        progress: told of images.

    Raises:
        DatasetError: no image can be read; or only metrics that need boxes were asked for, and no image has one in sight.
        RequestError: a method that the model does not have.
    """
    found = Measurement(settings)
    sums: dict[str, dict[str, Floats]] = {}
    with progress("Judging maps", len(images)) as advance:
        for sample in images.read(model.description.preprocessing):
            found.without_region += sample.region is None
            found.outside += sample.region is not None and not sample.region.any()
            found.images.append(_judge(model, sample, settings, sums))
            advance(1)
    if not any(image.values[name] for image in found.images for name in settings.names):
        raise DatasetError(
            f"{images.where}: no box lies in what the network sees of the {len(found.images)} images"
            f" ({found.without_region} without a box, {found.outside} outside): the paths in boxes.json are those below its folder"
        )
    number = len(found.images)
    found.curves = {kind: {name: total / number for name, total in of.items()} for kind, of in sums.items()}
    return found


def _judge(model: Model, sample: Sample, settings: Settings, sums: dict[str, dict[str, Floats]]) -> Judged:
    preprocessing = model.description.preprocessing
    target = FIRST_RANKED if settings.class_ids is None else settings.class_ids[sample.class_name]
    answer = explain(model, sample.image[None], (target,), settings.methods, softmax=settings.softmax, batch_size=settings.batch_size)
    assert answer.classes is not None  # maps were asked for
    class_id = int(answer.classes[0, 0])
    probability = float(answer.scores[0, class_id])
    score = class_score(model, class_id, settings.batch_size)
    probe = _Probe(sample, probability, score, settings, preprocessing)
    values: dict[str, dict[str, float]] = {}
    for name, low in _maps({name: answer.maps[name][0, 0] for name in settings.methods}, sample, settings, preprocessing).items():
        values[name], curves = probe.judge(low)
        for kind, curve in curves.items():
            totals = sums.setdefault(kind, {})
            totals[name] = totals[name] + curve if name in totals else curve
    return Judged(sample.name, sample.class_name, class_id, probability, values)


def _maps(of_model: dict[str, Values], sample: Sample, settings: Settings, preprocessing: Preprocessing) -> dict[str, Values]:
    """The methods' maps and the baselines', at the input's size; the random map's own size is the first method's."""
    height, width = of_model[settings.methods[0]].shape
    low = {**of_model, RANDOM: random_map(height, width, settings.seed, sample.number)}
    maps = {name: at_input_size(values, preprocessing.width, preprocessing.height) for name, values in low.items()}
    return {**maps, CENTRE: centre_map(preprocessing.height, preprocessing.width)}


class _Probe:
    """One image, ready to have maps judged on it: what all its maps share is made once."""

    def __init__(self, sample: Sample, probability: float, score: Score, settings: Settings, preprocessing: Preprocessing) -> None:
        self._sample = sample
        self._probability = probability
        self._score = score
        self._metrics = settings.metrics
        self._steps = settings.steps
        self._colour: Bytes = np.array([round(255 * value) for value in preprocessing.mean], dtype=np.uint8)
        self._blurred = blurred(sample.image) if INSERTION in settings.metrics else sample.image
        self._noise: npt.NDArray[np.float64] = noise_for(sample.image.shape, settings.seed, sample.number)

    def judge(self, values: Values) -> tuple[dict[str, float], dict[str, Floats]]:
        """A map at the input's size, not scaled: its figures by column, and its curves by metric."""
        image, score, wanted = self._sample.image, self._score, self._metrics
        unit = to_unit(values)
        order = ranking(values)
        figures: dict[str, float] = {}
        curves: dict[str, Floats] = {}
        if DELETION in wanted:
            curves[DELETION] = deletion(image, order, score, self._steps, self._colour)
        if INSERTION in wanted:
            curves[INSERTION] = insertion(image, order, score, self._steps, self._blurred)
        figures.update({kind: area(curve) for kind, curve in curves.items()})
        if ROAD in wanted:
            found = road(image, order, score, self._noise)
            figures |= {"road": found.combined, "road_morf": float(found.morf.mean()), "road_lerf": float(found.lerf.mean())}
        if DROP in wanted or INCREASE in wanted:
            after = float(score([explained(image, unit, self._colour)])[0])
            if DROP in wanted:
                figures[DROP] = drop(self._probability, after)
            if INCREASE in wanted:
                figures[INCREASE] = increase(self._probability, after)
        region = self._sample.region
        if region is not None and region.any():
            if POINTING in wanted:
                figures[POINTING] = float(points_at(values, region))
            if ENERGY in wanted:
                figures[ENERGY] = energy_inside(unit, region)
        return figures, curves


def probes_a_map(settings: Settings) -> int:
    """How many changed images the model is asked about for one map of one image."""
    curve = settings.steps + 1
    costs = {DELETION: curve, INSERTION: curve, ROAD: 2 * len(SHARES)}
    return sum(costs.get(name, 0) for name in settings.metrics) + (DROP in settings.metrics or INCREASE in settings.metrics)
