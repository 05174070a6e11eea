"""Protobuf messages to our own types and back, both directions side by side: for the server's edge and for the client."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import RequestError
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
"""More than any server answers; without it, a message of one-byte numbers would become a list of a gigabyte."""

_FLOATS = np.dtype("<f4")


def write_request(query: Query) -> pb.ClassifyRequest:
    """Raises: RequestError: a value that its field cannot hold, such as a class id above 64 bits."""
    image: dict[str, Any] = {"pixels": query.pixels} if query.encoded is None else {"encoded": query.encoded}
    try:
        wanted = None
        if query.map is not None:
            wanted = pb.MapRequest(
                method=query.map.method,
                classes=query.map.classes,
                format=_FORMATS[query.map.map_format],
                softmax=query.map.softmax,
                max_channels=query.map.max_channels,
            )
        return pb.ClassifyRequest(
            model=query.model, version=query.version, top_k=query.top_k, map=wanted, request_id=query.request_id, **image
        )
    except (TypeError, ValueError) as error:
        raise RequestError(f"the request cannot be written: {error}") from error


def read_request(message: pb.ClassifyRequest) -> Query:
    """Raises: RequestError: a map format that this version does not know, or an endless list of classes."""
    wanted = None
    if message.HasField("map"):
        if message.map.format not in _FORMAT_NAMES:
            raise RequestError(f"map.format {int(message.map.format)} is unknown: expected one of {', '.join(pb.MapFormat.keys())}")
        if len(message.map.classes) > _MAX_CLASSES:
            raise RequestError(f"map.classes holds {len(message.map.classes):,} numbers: at most {_MAX_CLASSES:,} are read")
        wanted = MapQuery(
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
        map=wanted,
        request_id=message.request_id,
    )


def write_response(answer: Classification) -> pb.ClassifyResponse:
    """An answer as a message."""
    timings = answer.timings
    return pb.ClassifyResponse(
        request_id=answer.request_id,
        model=answer.model,
        version=answer.version,
        predictions=[_write_prediction(one) for one in answer.predictions],
        timings=pb.Timings(
            decode_time_ns=timings.decode_time_ns,
            queue_time_ns=timings.queue_time_ns,
            infer_time_ns=timings.infer_time_ns,
            render_time_ns=timings.render_time_ns,
        ),
    )


def read_response(message: pb.ClassifyResponse) -> Classification:
    """An answer from its message."""
    timings = message.timings
    return Classification(
        request_id=message.request_id,
        model=message.model,
        version=message.version,
        predictions=tuple(_read_prediction(one) for one in message.predictions),
        timings=Timings(timings.decode_time_ns, timings.queue_time_ns, timings.infer_time_ns, timings.render_time_ns),
    )


def write_status(status: ModelStatus) -> pb.ModelStatus:
    """A line of `ListModels`."""
    return pb.ModelStatus(name=status.name, version=status.version, state=_STATES[status.state], reason=status.reason)


def read_status(message: pb.ModelStatus) -> ModelStatus:
    """A line of `ListModels`; a state that this version does not know counts as failed, since nobody may rely on it."""
    return ModelStatus(message.name, message.version, _STATE_NAMES.get(message.state, ModelState.FAILED), message.reason)


def write_info(info: ModelInfo) -> pb.GetModelResponse:
    """What `GetModel` answers."""
    return pb.GetModelResponse(
        model=info.model,
        version=info.version,
        device=info.device,
        labels=info.labels,
        input_height=info.input_height,
        input_width=info.input_width,
        methods=[pb.MapMethod(method=one.method, layer=one.layer, height=one.height, width=one.width) for one in info.methods],
        description_json=info.description_json,
    )


def read_info(message: pb.GetModelResponse) -> ModelInfo:
    """What `GetModel` answered."""
    return ModelInfo(
        model=message.model,
        version=message.version,
        device=message.device,
        labels=tuple(message.labels),
        input_height=message.input_height,
        input_width=message.input_width,
        methods=tuple(MapMethod(one.method, one.layer, one.height, one.width) for one in message.methods),
        description_json=message.description_json,
    )


def _write_prediction(one: Prediction) -> pb.Prediction:
    return pb.Prediction(
        class_id=one.class_id,
        label=one.label,
        score=one.score,
        rank=one.rank,
        logit=one.logit,
        map=None if one.map is None else _write_map(one.map),
    )


def _read_prediction(message: pb.Prediction) -> Prediction:
    drawn = _read_map(message.map) if message.HasField("map") else None
    return Prediction(message.class_id, message.label, message.score, message.rank, message.logit, drawn)


def _write_map(one: ClassMap) -> pb.ClassMap:
    values = b"" if one.values is None else one.values.astype(_FLOATS, copy=False).tobytes()
    return pb.ClassMap(method=one.method, height=one.height, width=one.width, values=values, png=one.png or b"", box=one.box)


def _read_map(message: pb.ClassMap) -> ClassMap:
    left, top, right, bottom = message.box
    values: npt.NDArray[np.float32] | None = None
    if message.values:
        values = np.frombuffer(message.values, _FLOATS).reshape(message.height, message.width).astype(np.float32)
    return ClassMap(message.method, message.height, message.width, values, message.png or None, (left, top, right, bottom))
