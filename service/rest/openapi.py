"""OpenAPI document of the endpoints, and an HTML rendering of it that loads no resources and runs no scripts."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib import metadata
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tlcli.service.rest.access_control import OPEN_PATHS
from tlcli.service.rest.endpoint import Content, Endpoint
from tlcli.service.rest.responses import JSON, json_response
from tlcli.service.rest.schemas import Error

Document = dict[str, Any]

_PARAMETER = re.compile(r"{(\w+)}")
_COMMON_ERRORS = (500, 503)
_METHOD_ERRORS = {"POST": (403,)}


class OpenApi:
    """OpenAPI document at `/openapi.json` and HTML page at `/docs`. Both describe their own endpoints as well.

    endpoints: all endpoints, including these two.
    document: the OpenAPI document.
    html: the HTML page.
    """

    def __init__(self, endpoints: Sequence[Endpoint], has_tokens: bool) -> None:
        """Create the document and the page.

        Args:
            endpoints: endpoints to describe.
            has_tokens: True if requests must carry a token.
        """
        own = [
            Endpoint("openapi", "GET", ("/openapi.json",), self.json, "Return this document", {JSON: None}),
            Endpoint("docs", "GET", ("/docs",), self.page, "Return this document as a page", {"text/html": None}),
        ]
        self.endpoints = (*endpoints, *own)
        self.document = _document(self.endpoints, has_tokens)
        self.html = _page(self.document)

    async def json(self, request: Request, body: bytes) -> Response:
        """Return the OpenAPI document."""
        return json_response(self.document)

    async def page(self, request: Request, body: bytes) -> Response:
        """Return the HTML page."""
        return HTMLResponse(self.html, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


class _Generator(GenerateJsonSchema):
    """Schema generator that omits field titles and describes optional fields as fields that may be missing instead of null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Omit the title."""
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema of the value without the null alternative."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema of the value without its default."""
        return self.generate_inner(schema["schema"])


def _schemas(endpoints: Iterable[Endpoint]) -> Document:
    """Return the JSON schemas of all bodies and responses by model name."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Error, "serialization")]
    for endpoint in endpoints:
        models += [(model, "validation") for model in endpoint.takes.values() if model is not None]
        models += [(model, "serialization") for model in endpoint.answers.values() if model is not None]
    _, document = models_json_schema(models, ref_template="#/components/schemas/{model}", schema_generator=_Generator)
    schemas: Document = document["$defs"]
    return schemas


def _document(endpoints: Sequence[Endpoint], has_tokens: bool) -> Document:
    paths: dict[str, Document] = {}
    for endpoint in endpoints:
        for path in endpoint.paths:
            paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, has_tokens)
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "tlcli",
            "version": metadata.version("tlcli"),
            "description": "Image classification with class activation maps: the Open Inference Protocol, and one request for curl.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(endpoints)},
    }
    if has_tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _operation(endpoint: Endpoint, path: str, has_tokens: bool) -> Document:
    version = "_version" if "{version}" in path else ""
    in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _PARAMETER.findall(path)]
    in_query = [{"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query.items()]
    responses: dict[str, Document] = {"200": {"description": HTTPStatus(200).phrase, "content": _content(endpoint.answers)}}
    token_errors = (401,) if has_tokens and path not in OPEN_PATHS else ()
    body_errors = (408,) if endpoint.takes else ()
    for status in sorted({*endpoint.refusals, *token_errors, *body_errors, *_METHOD_ERRORS.get(endpoint.method, ()), *_COMMON_ERRORS}):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": _content({JSON: Error})}
    operation: Document = {"operationId": endpoint.name + version, "summary": endpoint.summary, "responses": responses}
    if in_path or in_query:
        operation["parameters"] = [*in_path, *in_query]
    if endpoint.takes:
        operation["requestBody"] = {"content": _content(endpoint.takes)}
    if path in OPEN_PATHS:
        operation["security"] = []
    return operation


def _content(content: Content) -> Document:
    return {
        media_type: {} if model is None else {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
        for media_type, model in content.items()
    }


def _page(document: Document) -> str:
    """Render the page on the server, so that it needs no script, and no token to load the document."""
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    blocks = [f"<h1>{title}</h1><p>{html.escape(document['info']['description'])} <a href='openapi.json'>openapi.json</a></p>"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            blocks.append(_section(f"{method.upper()} {path}", operation))
    blocks.append("<h2>Schemas</h2>")
    for name, schema in document["components"]["schemas"].items():
        blocks.append(f"<details id='{name}'><summary><code>{name}</code></summary>{_json(schema)}</details>")
    return _FRAME.replace("TITLE", title).replace("BODY", "\n".join(blocks))


def _section(heading: str, operation: Document) -> str:
    rows = [
        f"<tr><td><code>{parameter['name']}</code></td><td>{parameter['in']}</td>"
        f"<td>{html.escape(parameter['schema'].get('description', ''))}</td></tr>"
        for parameter in operation.get("parameters", [])
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    accepts = operation.get("requestBody", {}).get("content", {})
    returns = operation["responses"]["200"]["content"]
    errors = ", ".join(status for status in operation["responses"] if status != "200")
    return (
        f"<section><h3><code>{html.escape(heading)}</code></h3><p>{html.escape(operation['summary'])}.</p>{table}"
        f"<p>{_media_types('Accepts', accepts)}{_media_types('Returns', returns)}Errors: {errors}.</p></section>"
    )


def _media_types(verb: str, content: Mapping[str, Document]) -> str:
    media_types = [f"<code>{html.escape(media_type)}</code>{_link(entry)}" for media_type, entry in content.items()]
    return f"{verb} {' or '.join(media_types)}. " if media_types else ""


def _link(entry: Document) -> str:
    name = entry.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f" (<a href='#{name}'>{name}</a>)" if name else ""


def _json(schema: Document) -> str:
    return f"<pre>{html.escape(json.dumps(schema, indent=2))}</pre>"


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
