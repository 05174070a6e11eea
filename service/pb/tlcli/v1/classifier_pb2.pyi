from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MapFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MAP_FORMAT_UNSPECIFIED: _ClassVar[MapFormat]
    MAP_FORMAT_RAW: _ClassVar[MapFormat]
    MAP_FORMAT_HEAT_MAP: _ClassVar[MapFormat]
    MAP_FORMAT_OVERLAY: _ClassVar[MapFormat]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
MAP_FORMAT_UNSPECIFIED: MapFormat
MAP_FORMAT_RAW: MapFormat
MAP_FORMAT_HEAT_MAP: MapFormat
MAP_FORMAT_OVERLAY: MapFormat
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_UNLOADED: ModelState

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "version", "encoded", "pixels", "top_k", "map", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    encoded: bytes
    pixels: bytes
    top_k: int
    map: MapRequest
    request_id: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., encoded: _Optional[bytes] = ..., pixels: _Optional[bytes] = ..., top_k: _Optional[int] = ..., map: _Optional[_Union[MapRequest, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class MapRequest(_message.Message):
    __slots__ = ("method", "classes", "format", "softmax", "max_channels")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SOFTMAX_FIELD_NUMBER: _ClassVar[int]
    MAX_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    method: str
    classes: _containers.RepeatedScalarFieldContainer[int]
    format: MapFormat
    softmax: bool
    max_channels: int
    def __init__(self, method: _Optional[str] = ..., classes: _Optional[_Iterable[int]] = ..., format: _Optional[_Union[MapFormat, str]] = ..., softmax: _Optional[bool] = ..., max_channels: _Optional[int] = ...) -> None: ...

class ClassMap(_message.Message):
    __slots__ = ("method", "height", "width", "values", "png", "box")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    method: str
    height: int
    width: int
    values: bytes
    png: bytes
    box: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, method: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[bytes] = ..., png: _Optional[bytes] = ..., box: _Optional[_Iterable[float]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("class_id", "label", "score", "rank", "logit", "map", "assigned", "threshold")
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    class_id: int
    label: str
    score: float
    rank: int
    logit: float
    map: ClassMap
    assigned: bool
    threshold: float
    def __init__(self, class_id: _Optional[int] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., rank: _Optional[int] = ..., logit: _Optional[float] = ..., map: _Optional[_Union[ClassMap, _Mapping]] = ..., assigned: _Optional[bool] = ..., threshold: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_time_ns", "queue_time_ns", "infer_time_ns", "render_time_ns")
    DECODE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    INFER_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    RENDER_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    decode_time_ns: int
    queue_time_ns: int
    infer_time_ns: int
    render_time_ns: int
    def __init__(self, decode_time_ns: _Optional[int] = ..., queue_time_ns: _Optional[int] = ..., infer_time_ns: _Optional[int] = ..., render_time_ns: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("request_id", "model", "version", "predictions", "timings", "task")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    version: str
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    timings: Timings
    task: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., task: _Optional[str] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: ClassifyResponse
    error: _status_pb2.Status
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "version", "state", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: ModelState
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "version", "device", "labels", "input_height", "input_width", "methods", "description_json", "task", "thresholds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_JSON_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    device: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    input_height: int
    input_width: int
    methods: _containers.RepeatedCompositeFieldContainer[MapMethod]
    description_json: str
    task: str
    thresholds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., input_height: _Optional[int] = ..., input_width: _Optional[int] = ..., methods: _Optional[_Iterable[_Union[MapMethod, _Mapping]]] = ..., description_json: _Optional[str] = ..., task: _Optional[str] = ..., thresholds: _Optional[_Iterable[float]] = ...) -> None: ...

class MapMethod(_message.Message):
    __slots__ = ("method", "layer", "height", "width")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    method: str
    layer: str
    height: int
    width: int
    def __init__(self, method: _Optional[str] = ..., layer: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...
