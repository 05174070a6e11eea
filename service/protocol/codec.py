"""Conversion between protobuf messages and plain dataclasses, in both directions, for the server and the clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
from tlcli.contract.model.description import Task
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.types.answer import Classification, ClassMap, MapMethod, ModelInfo, ModelState, ModelStatus, Prediction, Timings
from tlcli.service.types.query import MapFormat, MapQuery, Query

_FORMATS: dict[MapFormat, pb.MapFormat] = {
    "raw": pb.MAP_FORMAT_RAW,
    "heat_map": pb.MAP_FORMAT_HEAT_MAP,
    "overlay": pb.MAP_FORMAT_OVERLAY,
}
_FORMAT_NAMES: dict[int, MapFormat] = {number: name for name, number in _FORMATS.items()}
_FORMAT_NAMES[pb.MAP_FORMAT_UNSPECIFIED] = "raw"
_STATES: dict[ModelState, pb.ModelState] = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
    ModelState.UNLOADED: pb.MODEL_STATE_UNLOADED,
}
_STATE_NAMES = {number: state for state, number in _STATES.items()}

_MAX_CLASSES = 100_000
"""Maximum number of classes in a request, more than any model has. Without it, a message of one-byte numbers could become a list
of a gigabyte."""

_FLOATS = np.dtype("<f4")


def write_request(query: Query) -> pb.ClassifyRequest:
    """Convert a query to a protobuf message.

    Raises:
        RequestError: a value does not fit in its field, such as a class id above 64 bits.
    """
    image: dict[str, Any] = {"pixels": query.pixels} if query.encoded is None else {"encoded": query.encoded}
    try:
        map_request = None
        if query.map is not None:
            map_request = pb.MapRequest(
                method=query.map.method,
                classes=query.map.classes,
                format=_FORMATS[query.map.map_format],
                softmax=query.map.softmax,
                max_channels=query.map.max_channels,
            )
        return pb.ClassifyRequest(
            model=query.model, version=query.version, top_k=query.top_k, map=map_request, request_id=query.request_id, **image
        )
    except (TypeError, ValueError) as error:
        raise RequestError(f"the request cannot be encoded: {error}") from error


def read_request(message: pb.ClassifyRequest) -> Query:
    """Convert a protobuf message to a query.

    Raises:
        RequestError: the map format is unknown to this version, or the list of classes is too long.
    """
    map_query = None
    if message.HasField("map"):
        if message.map.format not in _FORMAT_NAMES:
            raise RequestError(f"unknown map.format {int(message.map.format)}: expected one of {', '.join(pb.MapFormat.keys())}")
        if len(message.map.classes) > _MAX_CLASSES:
            raise RequestError(
                f"map.classes holds {len(message.map.classes):,} numbers: the limit is {_MAX_CLASSES:,}; send several requests"
            )
        map_query = MapQuery(
            method=message.map.method,
            classes=tuple(message.map.classes),
            map_format=_FORMAT_NAMES[message.map.format],
            softmax=message.map.softmax,
            max_channels=message.map.max_channels,
        )
    image = message.WhichOneof("image")
    return Query(
        encoded=message.encoded if image == "encoded" else None,
        pixels=message.pixels if image == "pixels" else None,
        model=message.model,
        version=message.version,
        top_k=message.top_k,
        map=map_query,
        request_id=message.request_id,
    )


def write_response(answer: Classification) -> pb.ClassifyResponse:
    """Convert a response to a protobuf message."""
    timings = answer.timings
    return pb.ClassifyResponse(
        request_id=answer.request_id,
        model=answer.model,
        version=answer.version,
        predictions=[_write_prediction(prediction) for prediction in answer.predictions],
        timings=pb.Timings(
            decode_time_ns=timings.decode_time_ns,
            queue_time_ns=timings.queue_time_ns,
            infer_time_ns=timings.infer_time_ns,
            render_time_ns=timings.render_time_ns,
        ),
        task=answer.task,
    )


def read_response(message: pb.ClassifyResponse) -> Classification:
    """Convert a protobuf message to a response."""
    timings = message.timings
    return Classification(
        request_id=message.request_id,
        model=message.model,
        version=message.version,
        predictions=tuple(_read_prediction(prediction) for prediction in message.predictions),
        timings=Timings(timings.decode_time_ns, timings.queue_time_ns, timings.infer_time_ns, timings.render_time_ns),
        task=_read_task(message.task),
    )


def write_status(status: ModelStatus) -> pb.ModelStatus:
    """Convert the status of one model version to an entry of a `ListModels` response."""
    return pb.ModelStatus(name=status.name, version=status.version, state=_STATES[status.state], reason=status.reason)


def read_status(message: pb.ModelStatus) -> ModelStatus:
    """Convert a message of `ListModels` to a status.

    A state that this version does not know counts as failed, because callers cannot rely on it.
    """
    return ModelStatus(message.name, message.version, _STATE_NAMES.get(message.state, ModelState.FAILED), message.reason)


def write_info(info: ModelInfo) -> pb.GetModelResponse:
    """Convert the properties of a model to a `GetModel` response."""
    return pb.GetModelResponse(
        model=info.model,
        version=info.version,
        device=info.device,
        labels=info.labels,
        input_height=info.input_height,
        input_width=info.input_width,
        methods=[pb.MapMethod(method=entry.method, layer=entry.layer, height=entry.height, width=entry.width) for entry in info.methods],
        description_json=info.description_json,
        task=info.task,
        thresholds=info.thresholds,
    )


def read_info(message: pb.GetModelResponse) -> ModelInfo:
    """Convert a `GetModel` response to the properties of a model."""
    return ModelInfo(
        model=message.model,
        version=message.version,
        device=message.device,
        labels=tuple(message.labels),
        input_height=message.input_height,
        input_width=message.input_width,
        methods=tuple(MapMethod(entry.method, entry.layer, entry.height, entry.width) for entry in message.methods),
        description_json=message.description_json,
        task=_read_task(message.task),
        thresholds=tuple(message.thresholds),
    )


def _read_task(name: str) -> Task:
    """Return the task of a message, which is empty in those of earlier servers."""
    return "multi-label" if name == "multi-label" else "single-label"


def _write_prediction(prediction: Prediction) -> pb.Prediction:
    return pb.Prediction(
        class_id=prediction.class_id,
        label=prediction.label,
        score=prediction.score,
        rank=prediction.rank,
        logit=prediction.logit,
        map=None if prediction.map is None else _write_map(prediction.map),
        assigned=prediction.assigned,
        threshold=prediction.threshold,
    )


def _read_prediction(message: pb.Prediction) -> Prediction:
    class_map = _read_map(message.map) if message.HasField("map") else None
    return Prediction(
        message.class_id, message.label, message.score, message.rank, message.logit, class_map, message.assigned, message.threshold
    )


def _write_map(class_map: ClassMap) -> pb.ClassMap:
    values = b"" if class_map.values is None else class_map.values.astype(_FLOATS, copy=False).tobytes()
    return pb.ClassMap(
        method=class_map.method, height=class_map.height, width=class_map.width, values=values, png=class_map.png or b"", box=class_map.box
    )


def _read_map(message: pb.ClassMap) -> ClassMap:
    left, top, right, bottom = message.box
    values: npt.NDArray[np.float32] | None = None
    if message.values:
        values = np.frombuffer(message.values, _FLOATS).reshape(message.height, message.width).astype(np.float32)
    return ClassMap(message.method, message.height, message.width, values, message.png or None, (left, top, right, bottom))
