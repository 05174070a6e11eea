"""The ASGI application: each request observed, read, answered or refused, in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tlcli.service.decoding.memory_budget import MemoryBudget
from tlcli.service.rest.body import read_body
from tlcli.service.rest.disconnect import Attending
from tlcli.service.rest.endpoint import Endpoint
from tlcli.service.rest.error_responses import code_of, refusal
from tlcli.service.rest.token_middleware import OPEN, Guard
from tlcli.service.telemetry.request_record import REQUEST_ID, RequestRecord

Observe = Callable[[str, Sequence[tuple[str, str]]], AbstractContextManager[RequestRecord]]
"""From a method's name and the headers that came: a request of `tlcli.service.telemetry.request_record`, until the end of the block."""


class Application:
    """Answers at the endpoints' paths. asgi: what uvicorn runs."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        guard: Guard,
        attending: Attending,
        is_serving: Callable[[], bool],
        observe: Observe,
        budget: MemoryBudget,
    ) -> None:
        """
        Args:
            endpoints: what is answered.
            guard: that every request must pass.
            attending: that ends work whose client has left, or all of it.
            is_serving: where not, connections are not kept: their clients are to connect to whoever takes over.
            observe: told of each request but those for health.
            budget: that bodies are admitted from.
        """
        self._guard = guard
        self._attending = attending
        self._is_serving = is_serving
        self._observe = observe
        self._budget = budget
        routes = [Route(path, self._answering(one), methods=[one.method], name=one.name) for one in endpoints for path in one.paths]
        self.asgi = Starlette(routes=routes, exception_handlers={HTTPException: self._not_routed})
        self.asgi.router.redirect_slashes = False

    def _answering(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        name = f"{endpoint.method} {endpoint.paths[0]}"
        observe: Observe = (lambda name, headers: RequestRecord(name)) if endpoint.paths[0] in OPEN else self._observe

        async def answer(request: Request) -> Response:
            with observe(name, request.headers.items()) as observed:
                try:
                    response = await self._answer(endpoint, request, observed)
                except ClientDisconnect:
                    observed.code = "CANCELLED"
                    return Response()  # which nobody hears
                except Exception as error:  # noqa: BLE001  # turned into a status, and logged if it is a fault of ours
                    response = refusal(error)
                observed.code = observed.code or code_of(response.status_code)  # a refusal has noted its own: 503 stands for two
                observed.sent_bytes = len(response.body)
                if observed.echo:
                    response.headers[REQUEST_ID] = observed.echo
            if not self._is_serving():
                response.headers["Connection"] = "close"
            return response

        return answer

    async def _answer(self, endpoint: Endpoint, request: Request, observed: RequestRecord) -> Response:
        self._guard.check(request)
        with self._budget.bodies.lease() as lease:
            body = await self._attending.read(read_body(request, endpoint.max_bytes, lease)) if endpoint.takes else b""
            observed.received_bytes = len(body)
            return await self._attending.answer(request, endpoint.answer(request, body))

    async def _not_routed(self, request: Request, error: Exception) -> Response:
        """Where no endpoint is: 404, or 405 with the method that there is."""
        assert isinstance(error, HTTPException)
        response = self._refuse(request, error)
        if echo := request.headers.get(REQUEST_ID):
            response.headers[REQUEST_ID] = echo
        return response

    def _refuse(self, request: Request, error: HTTPException) -> Response:
        try:
            self._guard.check(request)
        except HTTPException as refused:
            return refusal(refused)
        if error.status_code == 405:
            expected = " or ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            return refusal(HTTPException(405, f"{request.method} is not answered here: {expected} was expected", error.headers))
        return refusal(HTTPException(404, f"no such path: {request.scope['path']!r:.100}; GET /docs lists what there is"))
