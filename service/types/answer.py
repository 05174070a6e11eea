"""Answers without protobuf: built by the server, returned by the clients."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import TlcliError
from tlcli.contract.images.preprocessing import Box


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Class activation map of one class.

    method: name of the map method.
    height, width: size of the explained layer, and of `values`.
    values: float32 `[height, width]`, not normalised; None if the request asked for an image.
    png: the drawn map; None if the request asked for values.
    box: the region of the upright image that the map covers: left, top, right, bottom in its pixels.
    """

    method: str
    height: int
    width: int
    values: npt.NDArray[np.float32] | None
    png: bytes | None
    box: Box


@dataclass(frozen=True)
class Prediction:
    """Score of one class.

    score: softmax probability, computed from `logit`.
    rank: 1 for the highest score.
    map: class activation map; None if the class was not explained.
    """

    class_id: int
    label: str
    score: float
    rank: int
    logit: float
    map: ClassMap | None = None


@dataclass(frozen=True)
class Timings:
    """Time that the server spent on a request, by stage. Waiting for a free thread counts as queueing in every stage."""

    decode_time_ns: int
    queue_time_ns: int
    infer_time_ns: int
    render_time_ns: int


@dataclass(frozen=True)
class Classification:
    """Answer for one image.

    predictions: the best `top_k` classes, best first, then explained classes that are not among them.
    model, version: the model that answered.
    """

    request_id: str
    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timings: Timings


@dataclass(frozen=True)
class StreamAnswer:
    """Answer for one image of a stream: a classification or an error."""

    request_id: str
    outcome: Classification | TlcliError

    def result(self) -> Classification:
        """Return the classification.

        Raises:
            TlcliError: the image failed with this error.
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
    """Status of one version of a model in the repository; `reason` says why it is not ready."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


@dataclass(frozen=True)
class MapMethod:
    """Map that a model offers: its method, the layer it explains, and its size."""

    method: str
    layer: str
    height: int
    width: int


@dataclass(frozen=True)
class ModelInfo:
    """Properties of one model.

    device: `cuda` or `cpu`.
    input_height, input_width: size of the input in pixels.
    description_json: the complete description, see `tlcli.contract.model.description.Description`.
    """

    model: str
    version: str
    device: str
    labels: tuple[str, ...]
    input_height: int
    input_width: int
    methods: tuple[MapMethod, ...]
    description_json: str
