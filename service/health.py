"""`grpc.health.v1`: is the server up, and each model of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc.aio
from grpc_health.v1 import health, health_pb2

from service.pb.tlcli.v1 import classifier_pb2

OVERALL = ""
"""The name under which the protocol asks for the whole server."""

CLASSIFIER = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"].full_name


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """The health service, by name: the whole server (`""`), `tlcli.v1.Classifier`, and each model."""

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()

    async def not_serving(self) -> None:
        """Before anything is loaded. (The base class begins with SERVING.)"""
        await self._set_all({OVERALL: False, CLASSIFIER: False})

    async def serving(self, models: Mapping[str, bool]) -> None:
        """The server takes requests, and which of its models do."""
        await self._set_all({**models, OVERALL: True, CLASSIFIER: True})

    def end_watches(self) -> None:
        """End the calls that watch, after they have told what is so: they would last as long as their clients."""
        self._ending.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]) -> None:  # noqa: N802
        """Tell the state of a service and each change of it, until the client leaves or the server stops."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            ending.cancel()

    async def _set_all(self, states: Mapping[str, bool]) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name, serving in states.items():
            await self.set(name, status.SERVING if serving else status.NOT_SERVING)
