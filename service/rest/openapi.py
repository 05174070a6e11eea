"""The OpenAPI document of the endpoints, and a page of it that fetches nothing and runs no script."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib import metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tlcli.service.rest.endpoint import Endpoint, of_json, schema
from tlcli.service.rest.error_responses import JSON
from tlcli.service.rest.json_tensors import BASE64
from tlcli.service.rest.token_middleware import OPEN

Document = dict[str, Any]

_TEXT: Document = {"type": "string"}
_WHOLE: Document = {"type": "integer"}
_TRUTH: Document = {"type": "boolean"}
_NUMBER: Document = {"type": "number"}


def _object(required: Sequence[str] = (), **properties: Document) -> Document:
    return {"type": "object", "properties": properties} | ({"required": [*required]} if required else {})


def _list(of: Document, **more: Any) -> Document:
    return {"type": "array", "items": of} | more


_PARAMETERS: Document = {"type": "object"}
_DATA = "The values, row by row, nested or not."
SCHEMAS: dict[str, Document] = {
    "Error": _object(["error"], error=_TEXT),
    "Live": _object(["live"], live=_TRUTH),
    "Ready": _object(["ready"], ready=_TRUTH),
    "ServerMetadata": _object(["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "TensorMetadata": _object(
        ["name", "datatype", "shape"], name=_TEXT, datatype=_TEXT, shape=_list(_WHOLE, description="-1 stands for any size.")
    ),
    "ModelMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(schema("TensorMetadata")),
        outputs=_list(schema("TensorMetadata")),
        properties=_object(labels=_list(_TEXT)),
    ),
    "InferRequest": _object(
        ["inputs"],
        id=_TEXT | {"description": "Comes back in the answer."},
        parameters=_object(binary_data_output=_TRUTH | {"description": "Whether outputs come as bytes behind the JSON."}),
        inputs=_list(
            _object(
                ["name", "datatype", "shape"],
                name=_TEXT,
                datatype={"type": "string", "enum": ["UINT8", "INT64", "BOOL", "BYTES"]},
                shape=_list(_WHOLE),
                data=_list({}, description=_DATA + " Bytes as base64, which the parameter content_type says."),
                parameters=_object(
                    binary_data_size=_WHOLE | {"description": "How many bytes behind the JSON hold the values, instead of data."},
                    content_type={"type": "string", "enum": [BASE64]},
                ),
            )
        ),
        outputs=_list(
            _object(["name"], name=_TEXT, parameters=_object(binary_data=_TRUTH)),
            description="Scores, logits, classes, and maps by their names; left out, scores and logits.",
        ),
    ),
    "InferResponse": _object(
        ["model_name", "model_version", "outputs"],
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_list(
            _object(
                ["name", "datatype", "shape"],
                name=_TEXT,
                datatype=_TEXT,
                shape=_list(_WHOLE),
                data=_list({"type": ["number", "null"]}, description="The values, row by row; null for what is no number."),
                parameters=_object(binary_data_size=_WHOLE),
            )
        ),
    ),
    "RepositoryIndexRequest": _object(ready=_TRUTH | {"description": "List those alone that answer."}),
    "RepositoryIndex": _list(
        _object(
            ["name", "version", "state", "reason"],
            name=_TEXT,
            version=_TEXT,
            state={"type": "string", "enum": ["READY", "LOADING", "UNAVAILABLE"]},
            reason=_TEXT,
        )
    ),
    "Classification": _object(
        ["request_id", "model", "version", "predictions", "timings"],
        request_id=_TEXT,
        model=_TEXT,
        version=_TEXT,
        predictions=_list(schema("Prediction"), description="The best classes, best first, then explained ones that are not among them."),
        timings=_object(decode_time_ns=_WHOLE, queue_time_ns=_WHOLE, infer_time_ns=_WHOLE, render_time_ns=_WHOLE),
    ),
    "Prediction": _object(
        ["class_id", "label", "score", "rank", "logit"],
        class_id=_WHOLE,
        label=_TEXT,
        score=_NUMBER | {"description": "The softmax probability."},
        rank=_WHOLE | {"description": "1 is the best."},
        logit=_NUMBER,
        map=schema("Map"),
    ),
    "Map": _object(
        ["method", "height", "width", "box"],
        method=_TEXT,
        height=_WHOLE,
        width=_WHOLE,
        box=_list(_NUMBER, description="The part of the image that the map covers: left, top, right, bottom, in its pixels."),
        values=_list(_list(_NUMBER), description="Row by row, where format is raw."),
        png=_TEXT | {"contentEncoding": "base64", "description": "The drawn map, in base64, where format is another."},
    ),
}
"""What comes and goes as JSON, by the names that endpoints use."""

_PARAMETER = re.compile(r"{(\w+)}")
_ALWAYS = (500, 503)
_OF_METHODS = {"POST": (403,)}


class OpenApi:
    """The document, as `/openapi.json`, and the page, as `/docs`; of these two endpoints too. html: the page."""

    def __init__(self, endpoints: Sequence[Endpoint], has_tokens: bool) -> None:
        """has_tokens: whether requests must carry one."""
        own = [
            Endpoint("openapi", "GET", ("/openapi.json",), self.json, "This document", {JSON: {"type": "object"}}),
            Endpoint("docs", "GET", ("/docs",), self.page, "This document as a page", {"text/html": {}}),
        ]
        self.endpoints = (*endpoints, *own)
        self.document = _document(self.endpoints, has_tokens)
        self.html = _page(self.document)

    async def json(self, request: Request, body: bytes) -> Response:
        """The document."""
        return of_json(self.document)

    async def page(self, request: Request, body: bytes) -> Response:
        """The page."""
        return HTMLResponse(self.html, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _document(endpoints: Iterable[Endpoint], has_tokens: bool) -> Document:
    paths: dict[str, Document] = {}
    for one in endpoints:
        for path in one.paths:
            paths.setdefault(path, {})[one.method.lower()] = _operation(one, path, has_tokens)
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "tlcli",
            "version": metadata.version("tlcli"),
            "description": "Image classification with class activation maps: the Open Inference Protocol, and one request for curl.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }
    if has_tokens:
        document["components"] = {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"token": []}]
    return document


def _operation(one: Endpoint, path: str, has_tokens: bool) -> Document:
    version = "_version" if "{version}" in path else ""
    in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in _PARAMETER.findall(path)]
    in_query = [{"name": name, "in": "query", "schema": about} for name, about in one.query.items()]
    responses: dict[str, Document] = {"200": {"description": HTTPStatus(200).phrase, "content": _content(one.answers)}}
    guarded = (401,) if has_tokens and path not in OPEN else ()
    late = (408,) if one.takes else ()
    for status in sorted({*one.refusals, *guarded, *late, *_OF_METHODS.get(one.method, ()), *_ALWAYS}):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": _content({JSON: schema("Error")})}
    operation: Document = {"operationId": one.name + version, "summary": one.summary, "responses": responses}
    if in_path or in_query:
        operation["parameters"] = [*in_path, *in_query]
    if one.takes:
        operation["requestBody"] = {"content": _content(one.takes)}
    if path in OPEN:
        operation["security"] = []
    return operation


def _content(types: Mapping[str, Any]) -> Document:
    return {kind: {"schema": about} if about else {} for kind, about in types.items()}


def _page(document: Document) -> str:
    """Server-side, so that it needs no script, and a browser that holds no token for the document."""
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    parts = [f"<h1>{title}</h1><p>{html.escape(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_section(f"{method.upper()} {path}", operation))
    parts.append("<h2>Schemas</h2>")
    for name, about in document["components"]["schemas"].items():
        parts.append(f"<details id='{name}'><summary><code>{name}</code></summary>{_json(about)}</details>")
    return _FRAME.replace("TITLE", title).replace("BODY", "\n".join(parts))


def _section(heading: str, operation: Document) -> str:
    rows = [
        f"<tr><td><code>{one['name']}</code></td><td>{one['in']}</td><td>{html.escape(one['schema'].get('description', ''))}</td></tr>"
        for one in operation.get("parameters", [])
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    takes = operation.get("requestBody", {}).get("content", {})
    gives = operation["responses"]["200"]["content"]
    refusals = ", ".join(status for status in operation["responses"] if status != "200")
    return (
        f"<section><h3><code>{html.escape(heading)}</code></h3><p>{html.escape(operation['summary'])}.</p>{table}"
        f"<p>{_kinds('Takes', takes)}{_kinds('Answers', gives)}Refuses with {refusals}.</p></section>"
    )


def _kinds(what: str, content: Mapping[str, Document]) -> str:
    kinds = [f"<code>{html.escape(kind)}</code>{_link(about)}" for kind, about in content.items()]
    return f"{what} {' or '.join(kinds)}. " if kinds else ""


def _link(about: Document) -> str:
    name = about.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f" (<a href='#{name}'>{name}</a>)" if name else ""


def _json(about: Document) -> str:
    return f"<pre>{html.escape(json.dumps(about, indent=2))}</pre>"


_FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
section { border-top: 1px solid #8884 }
pre { background: #8881; padding: 1em; overflow: auto }
td { padding: .1em 1em .1em 0; vertical-align: top }
:root { color-scheme: light dark }
</style></head><body>
BODY
</body></html>
"""
