"""ASGI application that records, checks, reads and handles every request in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tlcli.contract.errors import ServerError
from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.rest.access_control import OPEN_PATHS, AccessControl
from tlcli.service.rest.body import read_body
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.responses import code_of, error_response
from tlcli.service.telemetry.request_record import REQUEST_ID, RequestRecord

T = TypeVar("T")

_READ_S = 120.0
"""Time limit for receiving a request body in seconds."""

Observe = Callable[[str, Sequence[tuple[str, str]]], AbstractContextManager[RequestRecord]]
"""Callable that takes a method name and the request headers, and returns a context manager that records the request."""


class CancelOnDisconnect:
    """Guard that cancels awaited work when its client disconnects or when `cancel_all` is called."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()

    def cancel_all(self) -> None:
        """Cancel all current and future work, because the grace period is over."""
        self._shutdown.set()

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that reads the request body and return its result. Such work detects a disconnect itself.

        Raises:
            ServerError: the server is shutting down.
            HTTPException: 408: reading took too long.
            Exception: any error that `work` raises.
        """
        try:
            async with asyncio.timeout(_READ_S):
                return await self._first(work, self._until_shutdown())
        except TimeoutError as error:
            message = f"the body did not arrive within {_READ_S:g} s: send less at a time"
            raise HTTPException(408, message, {"Connection": "close"}) from error

    async def answer(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Await work for a request that has been read completely and return its result.

        Raises:
            ClientDisconnect: the client disconnected.
            ServerError: the server is shutting down.
            Exception: any error that `work` raises.
        """
        return await self._first(work, self._until_shutdown(), _until_disconnect(request))

    async def _first(self, work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, Exception]) -> T:
        working = asyncio.ensure_future(work)
        ending = [asyncio.ensure_future(end) for end in ends]
        try:
            await asyncio.wait([working, *ending], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.add_done_callback(_retrieve_error)
                raise next(end for end in ending if end.done()).result()
            return working.result()
        finally:
            for task in (working, *ending):
                task.cancel()
            # An error's traceback references this frame, and the task references the error. The cycle would keep the request's body alive.
            del working, ending, task

    async def _until_shutdown(self) -> Exception:
        await self._shutdown.wait()
        return ServerError("the server shut down before it responded: retry to reach its replacement")


class Application:
    """Application that handles requests to the paths of its endpoints.

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
        """Respond to a request without an endpoint: 404, or 405 with the methods of the path."""
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


async def _until_disconnect(request: Request) -> Exception:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return ClientDisconnect()


def _retrieve_error(cancelled: asyncio.Future[Any]) -> None:
    """Retrieve an error that work raised while being cancelled, because asyncio logs errors that are never retrieved."""
    if not cancelled.cancelled():
        cancelled.exception()
