"""An endpoint: what is answered at a path, and how it is described. Routes and the OpenAPI document are made of the same list."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from tlcli.service.rest.error_responses import JSON

Answer = Callable[[Request, bytes], Coroutine[Any, Any, Response]]
"""From a request and its body; what it raises is turned into a refusal."""


@dataclass(frozen=True)
class Endpoint:
    """One method on one or several paths.

    name: for metrics and traces, and the document's `operationId`.
    answer: what is done.
    summary: in a line.
    answers: what comes, a media type and its schema each; none: an empty body.
    query: parameters, by name: a schema with a description each.
    takes: bodies that are taken, a media type and its schema each; none: the body is not read.
    max_bytes: of the body.
    refusals: statuses, beside those that every request may meet.
    """

    name: str
    method: str
    paths: Sequence[str]
    answer: Answer
    summary: str
    answers: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    takes: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 0
    refusals: Sequence[int] = ()


def of_json(value: object, status: int = 200) -> Response:
    """An answer in JSON. Numbers that are none (NaN, infinity) are null."""
    return Response(to_json(value, inf_nan_mode="null"), status, media_type=JSON)


def schema(name: str) -> dict[str, str]:
    """One of `tlcli.service.rest.openapi.SCHEMAS`, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}
