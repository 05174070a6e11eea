"""An image as a request's body, its classes as the answer: for `curl`, and for programs without a client."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, get_args

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from tlcli.contract.errors import RequestError
from tlcli.contract.images.decoding import ImageLimits
from tlcli.service.inference.classifier import DEFAULT_TOP_K, Classifier
from tlcli.service.rest.endpoint import Endpoint, of_json, schema
from tlcli.service.rest.error_responses import JSON
from tlcli.service.types.answer import Classification, ClassMap
from tlcli.service.types.query import MapFormat, MapQuery, Query, require_map_format

PNG = "image/png"
_NUMBER = re.compile("[+-]?[0-9]{1,100}")
PATH = "/v1/classify"

_MAP = "map"
_OF_MAPS = ("classes", "format", "softmax", "max_channels")
_WHOLE, _TEXT = {"type": "integer"}, {"type": "string"}
_QUERY: dict[str, dict[str, Any]] = {
    "model": _TEXT | {"description": "Its name; may be left out where the server holds one."},
    "version": _TEXT | {"description": "Its number, or a label of it; left out, the latest."},
    "top_k": _WHOLE | {"description": f"How many of the best classes; left out, {DEFAULT_TOP_K}."},
    _MAP: _TEXT | {"description": "A map's name, such as gradcam; left out, none is computed."},
    "classes": _TEXT | {"description": "To explain, by id, with commas between them; -r is the r-th ranked. Left out, the first ranked."},
    "format": {"type": "string", "enum": [*get_args(MapFormat)], "description": "A map's numbers (raw), or a PNG of it."},
    "softmax": {"type": "boolean", "description": "Explain the class's probability instead of its logit."},
    "max_channels": _WHOLE | {"description": "How many channels a Score-CAM looks through."},
    "request_id": _TEXT | {"description": "Comes back in the answer."},
}


class ClassifyEndpoint:
    """`POST /v1/classify`. What is asked is in the query string, in the words of `tlcli.service.types.query.Query`."""

    def __init__(self, classifier: Classifier, limits: ImageLimits) -> None:
        self._classifier = classifier
        self._limits = limits

    def endpoint(self) -> Endpoint:
        """As it is routed and described."""
        return Endpoint(
            name="classify",
            method="POST",
            paths=(PATH,),
            answer=self.classify,
            summary=f"One image, its classes and maps; with `Accept: {PNG}`, the drawn map itself",
            answers={JSON: schema("Classification"), PNG: {}},
            query=_QUERY,
            takes={"image/*": {}, "application/octet-stream": {}},
            max_bytes=self._limits.max_bytes,
            refusals=(400, 404, 409, 413, 415, 429, 504),
        )

    async def classify(self, request: Request, body: bytes) -> Response:
        """One image."""
        drawn = _wants_png(request)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RequestError("a form came: send the image's bytes alone, as `curl --data-binary @image.jpg` does")
        answer = await self._classifier.classify(_read_query(request.query_params, body, drawn))
        if not drawn:
            return of_json(_write(answer))
        (png,) = [one.map.png for one in answer.predictions if one.map is not None]
        return Response(png, media_type=PNG)


def _wants_png(request: Request) -> bool:
    accepted = {part.split(";")[0].strip() for part in request.headers.get("accept", "").lower().split(",")}
    return PNG in accepted and JSON not in accepted


def _read_query(given: QueryParams, body: bytes, drawn: bool) -> Query:
    """Raises: RequestError: a parameter that is unknown, comes twice, or cannot be read."""
    for name in given:
        if name not in _QUERY:
            raise RequestError(f"no query parameter {name!r:.60}; there are: {', '.join(_QUERY)}")
        if len(given.getlist(name)) > 1:
            raise RequestError(f"query parameter {name!r} came twice")
    return Query(
        encoded=body,
        model=given.get("model", ""),
        version=given.get("version", ""),
        top_k=_whole("top_k", given.get("top_k", "0")),
        map=_read_map(given, drawn),
        request_id=given.get("request_id", ""),
    )


def _read_map(given: QueryParams, drawn: bool) -> MapQuery | None:
    if _MAP not in given:
        if drawn:
            raise RequestError(f"a map is to be drawn (Accept: {PNG}), and none is named: say which with ?{_MAP}=, such as ?{_MAP}=gradcam")
        if alone := [name for name in _OF_MAPS if name in given]:
            raise RequestError(f"query parameter {alone[0]!r} came without {_MAP!r}: say which map with ?{_MAP}=, such as ?{_MAP}=gradcam")
        return None
    classes = tuple(_whole("classes", part) for part in given["classes"].split(",")) if given.get("classes") else ()
    map_format = require_map_format(given.get("format", "overlay" if drawn else "raw"))
    if drawn and (map_format == "raw" or len(classes) > 1):
        what = "format=raw" if map_format == "raw" else f"{len(classes)} classes"
        raise RequestError(f"one drawn map was expected where an image is to come (Accept: {PNG}), {what} came: accept {JSON} instead")
    return MapQuery(
        method=given[_MAP],
        classes=classes,
        map_format=map_format,
        softmax=_truth("softmax", given.get("softmax", "false")),
        max_channels=_whole("max_channels", given.get("max_channels", "0")),
    )


def _whole(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise RequestError(f"query parameter {name!r} is {text!r:.60}: a whole number was expected")
    return int(text)


def _truth(name: str, text: str) -> bool:
    known: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise RequestError(f"query parameter {name!r} is {text!r:.60}: true or false was expected")
    return known[text.lower()]


def _write(answer: Classification) -> dict[str, Any]:
    timings = answer.timings
    return {
        "request_id": answer.request_id,
        "model": answer.model,
        "version": answer.version,
        "predictions": [
            {
                "class_id": one.class_id,
                "label": one.label,
                "score": one.score,
                "rank": one.rank,
                "logit": one.logit,
                **({} if one.map is None else {"map": _write_map(one.map)}),
            }
            for one in answer.predictions
        ],
        "timings": {
            "decode_time_ns": timings.decode_time_ns,
            "queue_time_ns": timings.queue_time_ns,
            "infer_time_ns": timings.infer_time_ns,
            "render_time_ns": timings.render_time_ns,
        },
    }


def _write_map(one: ClassMap) -> dict[str, Any]:
    came: dict[str, Any] = {} if one.values is None else {"values": one.values.tolist()}
    if one.png is not None:
        came["png"] = base64.b64encode(one.png).decode()
    return {"method": one.method, "height": one.height, "width": one.width, "box": list(one.box), **came}
