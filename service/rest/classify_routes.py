"""Route that takes one image as the body and returns its classes, for `curl` and programs without a client library."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, SkipValidation
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from tlcli.contract.errors import RequestError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.service.inference.classifier import DEFAULT_TOP_K, Classifier
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.responses import JSON, json_response
from tlcli.service.telemetry.request_record import current_request
from tlcli.service.types.query import MapFormat, MapQuery, Query, require_map_format

PNG = "image/png"
PATH = "/v1/classify"

_NUMBER = re.compile("[+-]?[0-9]{1,100}")
_CAM = "cam"
_MAP_OPTIONS = ("classes", "format", "softmax", "max_channels")
_INTEGER, _STRING = {"type": "integer"}, {"type": "string"}
_QUERY: dict[str, dict[str, Any]] = {
    "model": _STRING | {"description": "Name of the model. Optional if the server holds one model only."},
    "version": _STRING | {"description": "Number or label of the version. Default: the latest."},
    "top_k": _INTEGER | {"description": f"Number of best classes to return. Default: {DEFAULT_TOP_K}."},
    _CAM: _STRING | {"description": "Map to compute, such as gradcam. Default: none."},
    "classes": _STRING
    | {
        "description": "Classes to explain, separated by commas: labels, ids, or -r for the r-th ranked. Default: the first ranked, or all"
        " assigned labels."
    },
    "format": {"type": "string", "enum": [*get_args(MapFormat)], "description": "Values of the map (raw), or a PNG of it."},
    "softmax": {"type": "boolean", "description": "Explain the class's probability instead of its logit."},
    "max_channels": _INTEGER | {"description": "Number of channels of a Score-CAM."},
    "request_id": _STRING | {"description": "Repeated in the response."},
}


class Map(BaseModel):
    """Class activation map of one class."""

    cam: str = Field(validation_alias="method", description="Name of the map, such as gradcam.")
    height: int
    width: int
    box: list[float] = Field(description="Part of the image that the map covers: left, top, right, bottom, in pixels.")
    values: Annotated[
        SkipValidation[list[list[float]] | None], BeforeValidator(lambda values: None if values is None else values.tolist())
    ] = Field(None, description="Values row by row, with format raw.")
    png: Annotated[str | None, BeforeValidator(lambda png: None if png is None else base64.b64encode(png).decode())] = Field(
        None, description="PNG in base64, with format heat_map or overlay.", json_schema_extra={"contentEncoding": "base64"}
    )


class Prediction(BaseModel):
    """Scores of one class."""

    class_id: int
    label: str
    score: float = Field(description="Probability: a softmax, or a sigmoid with several labels per image.")
    rank: int = Field(description="1 for the best class.")
    logit: float
    map: Map | None = None
    assigned: bool = Field(False, description="With several labels per image: true if the score reaches the threshold.")
    threshold: float = Field(0.0, description="With several labels per image: score from which on the label is assigned.")


class Timings(BaseModel):
    """Time spent on the server in nanoseconds. Waiting for a thread counts as queueing."""

    decode_time_ns: int
    queue_time_ns: int
    infer_time_ns: int
    render_time_ns: int


class Classification(BaseModel):
    """Predicted classes of one image and their maps."""

    request_id: str
    model: str
    version: str
    predictions: list[Prediction] = Field(
        description="Top-k classes and, with several labels per image, all assigned labels, highest score first; then other explained"
        " classes."
    )
    timings: Timings
    task: str = Field(description="single-label, or multi-label if an image can have several labels, or none.")


class ClassifyEndpoint:
    """Endpoint `POST /v1/classify`, whose query parameters correspond to the fields of `tlcli.service.types.query.Query`."""

    def __init__(self, classifier: Classifier, limits: ImageLimits) -> None:
        self._classifier = classifier
        self._limits = limits

    def endpoint(self) -> Endpoint:
        """Return the route and its description."""
        return Endpoint(
            name="classify",
            method="POST",
            paths=(PATH,),
            answer=self.classify,
            summary=f"Classify one image and compute maps; with `Accept: {PNG}`, return the rendered map itself",
            answers={JSON: Classification, PNG: None},
            query=_QUERY,
            takes={"image/*": None, "application/octet-stream": None},
            max_bytes=self._limits.max_bytes,
            refusals=(400, 404, 409, 413, 415, 429, 504),
        )

    async def classify(self, request: Request, body: bytes) -> Response:
        """Classify one image."""
        wants_png = _wants_png(request)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RequestError("the body is a form: send the image's bytes alone, as `curl --data-binary @image.jpg` does")
        answer = await self._classifier.classify(self._read_query(request.query_params, body, wants_png))
        if not wants_png:
            return json_response(Classification.model_validate(answer, from_attributes=True))
        pngs = [prediction.map.png for prediction in answer.predictions if prediction.map is not None]
        if len(pngs) != 1:
            raise RequestError(f"{len(pngs)} labels are assigned, but a PNG shows one map: name a class with classes, or ask for JSON")
        return Response(pngs[0], media_type=PNG)

    def _read_query(self, parameters: QueryParams, body: bytes, wants_png: bool) -> Query:
        """Read the query parameters.

        Raises:
            RequestError: a parameter is unknown, occurs twice, or has an invalid value.
            NotFoundError, ModelFileError, ServerError: the request lists classes of a model that is not served.
        """
        for name in parameters:
            if name not in _QUERY:
                raise RequestError(f"unknown query parameter {name!r:.60}: expected {', '.join(_QUERY)}")
            if len(parameters.getlist(name)) > 1:
                raise RequestError(f"query parameter {name!r} occurs twice: send it once")
        request_id = parameters.get("request_id", "")
        current_request().note_request(request_id, images=1)
        return Query(
            encoded=body,
            model=parameters.get("model", ""),
            version=parameters.get("version", ""),
            top_k=_integer("top_k", parameters.get("top_k", "0")),
            map=self._read_map(parameters, wants_png),
            request_id=request_id,
        )

    def _read_map(self, parameters: QueryParams, wants_png: bool) -> MapQuery | None:
        example = f"name a map with ?{_CAM}=, such as ?{_CAM}=gradcam"
        if _CAM not in parameters:
            if wants_png:
                raise RequestError(f"the request accepts only an image (Accept: {PNG}), but names no map: {example}")
            if options := [name for name in _MAP_OPTIONS if name in parameters]:
                raise RequestError(f"query parameter {options[0]!r} requires {_CAM!r}: {example}")
            return None
        map_format = require_map_format(parameters.get("format", "overlay" if wants_png else "raw"))
        softmax = _boolean("softmax", parameters.get("softmax", "false"))
        max_channels = _integer("max_channels", parameters.get("max_channels", "0"))
        classes: tuple[int, ...] = ()
        if text := parameters.get("classes"):
            classes = self._classifier.parse_classes(text, parameters.get("model", ""), parameters.get("version", ""))
        if wants_png and (map_format == "raw" or len(classes) > 1):
            what = "format=raw" if map_format == "raw" else f"{len(classes)} classes"
            raise RequestError(f"a response in {PNG} can hold only one rendered map, but the request has {what}: accept {JSON} instead")
        return MapQuery(parameters[_CAM], classes, map_format, softmax, max_channels)


def _wants_png(request: Request) -> bool:
    accepted = {media_range.split(";")[0].strip() for media_range in request.headers.get("accept", "").lower().split(",")}
    return PNG in accepted and JSON not in accepted


def _integer(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise RequestError(f"query parameter {name!r} is {text!r:.60}: expected an integer")
    return int(text)


def _boolean(name: str, text: str) -> bool:
    values: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise RequestError(f"query parameter {name!r} is {text!r:.60}: expected true or false")
    return values[text.lower()]
