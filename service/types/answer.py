"""Response types without protobuf. The server builds them, and the clients return them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import TlcliError
from tlcli.contract.images.preprocessing import Box
from tlcli.contract.model.description import Task


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Class activation map of one class.

    method: name of the map method.
    height, width: size of the explained layer, and of `values`.
    values: float32 array `[height, width]`, not normalised; None if the request selected an image.
    png: map drawn as a PNG image; None if the request selected values.
    box: region of the upright image that the map covers: left, top, right and bottom, in pixels of that image.
    """

    method: str
    height: int
    width: int
    values: npt.NDArray[np.float32] | None
    png: bytes | None
    box: Box


@dataclass(frozen=True)
class Prediction:
    """Prediction for one class.

    score: probability of the class: the softmax of the logits, or their sigmoid with several labels per image.
    rank: position of the class by score; 1 for the highest score.
    map: class activation map; None if the class was not explained.
    assigned: with several labels per image, True if the image has the label: its score reaches the threshold.
    threshold: with several labels per image, the score from which on the label is assigned; 0 otherwise.
    """

    class_id: int
    label: str
    score: float
    rank: int
    logit: float
    map: ClassMap | None = None
    assigned: bool = False
    threshold: float = 0.0


@dataclass(frozen=True)
class Timings:
    """Time that the server spent on each stage of a request, in nanoseconds.

    The time that any stage waits for a free thread counts as queue time.
    """

    decode_time_ns: int
    queue_time_ns: int
    infer_time_ns: int
    render_time_ns: int


@dataclass(frozen=True)
class Classification:
    """Response for one image.

    predictions: the `top_k` classes with the highest scores, in descending order, then explained classes that are not among them. With
        several labels per image, also all assigned labels.
    model, version: name and version of the model that handled the request.
    task: `multi-label` if an image can have several labels.
    """

    request_id: str
    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timings: Timings
    task: Task = "single-label"

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the image has, best first: one, or with several labels per image those that are assigned."""
        if self.task == "multi-label":
            return tuple(prediction.label for prediction in self.predictions if prediction.assigned)
        return tuple(prediction.label for prediction in self.predictions if prediction.rank == 1)


@dataclass(frozen=True)
class StreamAnswer:
    """Response for one image of a stream: a classification or an error."""

    request_id: str
    outcome: Classification | TlcliError

    def result(self) -> Classification:
        """Return the classification.

        Raises:
            TlcliError: the image could not be classified; this is `outcome`.
        """
        if isinstance(self.outcome, TlcliError):
            raise self.outcome
        return self.outcome


class ModelState(enum.Enum):
    """State of one version of a model in the repository."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True)
class ModelStatus:
    """Status of one version of a model in the repository. `reason` explains why a version is not ready."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


@dataclass(frozen=True)
class MapMethod:
    """Map method that a model offers, with the layer that it explains and the size of its maps."""

    method: str
    layer: str
    height: int
    width: int


@dataclass(frozen=True)
class ModelInfo:
    """Properties of one model.

    device: device that runs the model, `cuda` or `cpu`.
    input_height, input_width: size of the input in pixels.
    description_json: complete description as JSON; see `tlcli.contract.model.description.Description`.
    task, thresholds: see the same.
    """

    model: str
    version: str
    device: str
    labels: tuple[str, ...]
    input_height: int
    input_width: int
    methods: tuple[MapMethod, ...]
    description_json: str
    task: Task = "single-label"
    thresholds: tuple[float, ...] = ()
