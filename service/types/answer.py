"""What is answered, free of protobuf: the server makes it, the client hands it to the caller."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import TlcliError
from tlcli.contract.images.preprocessing import Box


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Where in the image a class was seen.

    method: that made it.
    height, width: of the explained layer, and so of `values`.
    values: float32 `[height, width]`, not normalised; None where an image was asked for.
    png: the drawn map; None where values were asked for.
    box: the part of the upright image that the map covers: left, top, right, bottom in its pixels.
    """

    method: str
    height: int
    width: int
    values: npt.NDArray[np.float32] | None
    png: bytes | None
    box: Box


@dataclass(frozen=True)
class Prediction:
    """One class.

    score: its softmax probability, from `logit`.
    rank: 1 is the best.
    map: if the class was explained.
    """

    class_id: int
    label: str
    score: float
    rank: int
    logit: float
    map: ClassMap | None = None


@dataclass(frozen=True)
class Timings:
    """Where the time went on the server; waiting for a free thread counts as queueing, wherever it happened."""

    decode_time_ns: int
    queue_time_ns: int
    infer_time_ns: int
    render_time_ns: int


@dataclass(frozen=True)
class Classification:
    """The answer about one image.

    predictions: the best `top_k` classes, best first, then explained classes that are not among them.
    model, version: that answered.
    """

    request_id: str
    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timings: Timings


@dataclass(frozen=True)
class StreamAnswer:
    """The answer about one image of a stream: a classification, or the error it met."""

    request_id: str
    outcome: Classification | TlcliError

    def result(self) -> Classification:
        """The classification.

        Raises:
            TlcliError: the error that the image met.
        """
        if isinstance(self.outcome, TlcliError):
            raise self.outcome
        return self.outcome


class ModelState(enum.Enum):
    """Of one version of a model in the repository."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model in the repository; `reason` says why it is not ready."""

    name: str
    version: str
    state: ModelState
    reason: str = ""


@dataclass(frozen=True)
class MapMethod:
    """A map that a model offers: the method to ask for, the layer it explains, and the map's size there."""

    method: str
    layer: str
    height: int
    width: int


@dataclass(frozen=True)
class ModelInfo:
    """All that is known of one model.

    device: `cuda` or `cpu`, where it runs.
    input_height, input_width: pixels.
    description_json: the whole description, see `tlcli.contract.model.description.Description`.
    """

    model: str
    version: str
    device: str
    labels: tuple[str, ...]
    input_height: int
    input_width: int
    methods: tuple[MapMethod, ...]
    description_json: str
