"""Endpoints: how a path is answered, and how it is described. Routes and the OpenAPI document come from the same list."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Answer = Callable[[Request, bytes], Coroutine[Any, Any, Response]]
"""Takes a request and its body, and returns the response; an exception becomes an error response."""

Content = Mapping[str, type[BaseModel] | None]
"""Media types, each with the model of its JSON; None for other content."""


@dataclass(frozen=True)
class Endpoint:
    """One HTTP method on one or several paths.

    name: name for metrics and traces, and the document's `operationId`.
    answer: function that answers a request.
    summary: description in one line.
    answers: content of the response; empty for an empty body.
    query: parameters by name, a schema with a description each.
    takes: accepted bodies; if empty, the body is not read.
    max_bytes: limit of the body.
    refusals: error statuses, besides those that every request may receive.
    """

    name: str
    method: str
    paths: Sequence[str]
    answer: Answer
    summary: str
    answers: Content = field(default_factory=dict)
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    takes: Content = field(default_factory=dict)
    max_bytes: int = 0
    refusals: Sequence[int] = ()
