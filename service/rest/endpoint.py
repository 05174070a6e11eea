"""Endpoint definition that combines a path's handler and its description. Routes and the OpenAPI document use the same definitions."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

Answer = Callable[[Request, bytes], Coroutine[Any, Any, Response]]
"""Handler that takes a request and its body and returns the response. An exception becomes an error response."""

Content = Mapping[str, type[BaseModel] | None]
"""Mapping from media types to the models of their JSON; None for content that is not JSON or has no model."""


@dataclass(frozen=True)
class Endpoint:
    """One HTTP method on one or several paths.

    name: route name and `operationId` in the OpenAPI document.
    answer: handler of the request.
    summary: one-line description.
    answers: content types of the response; empty for an empty body.
    query: query parameters by name, each as a schema with a description.
    takes: accepted content types of the body; if empty, the body is not read.
    max_bytes: maximum size of the body in bytes.
    refusals: error statuses in addition to those that every request may receive.
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
