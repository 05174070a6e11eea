"""ASGI application that records, checks, reads and answers every request in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.rest.access_control import OPEN_PATHS, AccessControl
from tlcli.service.rest.body import read_body
from tlcli.service.rest.disconnect import CancelOnDisconnect
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.responses import code_of, error_response
from tlcli.service.telemetry.request_record import REQUEST_ID, RequestRecord

Observe = Callable[[str, Sequence[tuple[str, str]]], AbstractContextManager[RequestRecord]]
"""Callable that takes a method name and the request headers, and returns a context manager that records the request."""


class Application:
    """Application that answers requests to the paths of its endpoints.

    asgi: ASGI application to pass to uvicorn.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        access: AccessControl,
        cancelling: CancelOnDisconnect,
        is_serving: Callable[[], bool],
        observe: Observe,
        budget: MemoryBudget,
    ) -> None:
        """Create the application.

        Args:
            endpoints: endpoints to route.
            access: access check for every request.
            cancelling: cancels work when its client disconnects, and all work at shutdown.
            is_serving: returns True while the server accepts requests. If it returns False, connections are closed after the response, so
                that clients connect to the server that takes over.
            observe: records each request except health checks.
            budget: memory budget from which bodies are admitted.
        """
        self._access = access
        self._cancelling = cancelling
        self._is_serving = is_serving
        self._observe = observe
        self._budget = budget
        routes = [
            Route(path, self._handler(endpoint), methods=[endpoint.method], name=endpoint.name)
            for endpoint in endpoints
            for path in endpoint.paths
        ]
        self.asgi = Starlette(routes=routes, exception_handlers={HTTPException: self._no_route})
        self.asgi.router.redirect_slashes = False

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        name = f"{endpoint.method} {endpoint.paths[0]}"
        observe: Observe = (lambda name, headers: RequestRecord(name)) if endpoint.paths[0] in OPEN_PATHS else self._observe

        async def handle(request: Request) -> Response:
            with observe(name, request.headers.items()) as observed:
                try:
                    response = await self._answer(endpoint, request, observed)
                except ClientDisconnect:
                    observed.code = "CANCELLED"
                    return Response()  # the client is gone: the response is not sent
                except Exception as error:  # noqa: BLE001  # every error becomes a status, and is logged if the server is at fault
                    response = error_response(error)
                observed.code = observed.code or code_of(response.status_code)  # an error sets its own code: 503 maps to two codes
                observed.sent_bytes = len(response.body)
                if observed.echo:
                    response.headers[REQUEST_ID] = observed.echo
            if not self._is_serving():
                response.headers["Connection"] = "close"
            return response

        return handle

    async def _answer(self, endpoint: Endpoint, request: Request, observed: RequestRecord) -> Response:
        self._access.check(request)
        with self._budget.bodies.lease() as lease:
            body = await self._cancelling.read(read_body(request, endpoint.max_bytes, lease)) if endpoint.takes else b""
            observed.received_bytes = len(body)
            return await self._cancelling.answer(request, endpoint.answer(request, body))

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """Answer a request without an endpoint: 404, or 405 with the methods of the path."""
        assert isinstance(error, HTTPException)
        response = self._refuse(request, error)
        if echo := request.headers.get(REQUEST_ID):
            response.headers[REQUEST_ID] = echo
        return response

    def _refuse(self, request: Request, error: HTTPException) -> Response:
        try:
            self._access.check(request)
        except HTTPException as refused:
            return error_response(refused)
        if error.status_code == 405:
            expected = " or ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            return error_response(HTTPException(405, f"method {request.method} is not allowed here: use {expected}", error.headers))
        return error_response(HTTPException(404, f"no such path: {request.scope['path']!r:.100}: see GET /docs for the paths"))
