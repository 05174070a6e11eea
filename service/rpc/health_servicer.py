"""Servicer for `grpc.health.v1` that reports the health of the server and of each model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import OVERALL_HEALTH, aio  # type: ignore[attr-defined]  # the stubs leave `aio` out

from tlcli.service.protocol.rpc_methods import SERVICES


class HealthServicer(aio.HealthServicer):  # type: ignore[misc]
    """Health servicer that reports health by name: the entire server (`""`), its two services, and each model."""

    def __init__(self) -> None:
        super().__init__()
        self._ending = asyncio.Event()
        self._models: set[str] = set()

    async def announce(self, serving: bool, models: Mapping[str, bool]) -> None:
        """Set the health of the server and its models.

        Args:
            serving: True if the server as a whole is serving.
            models: maps model names to True if the model is serving. Models from earlier calls that are missing now become not serving.
        """
        status = health_pb2.HealthCheckResponse.ServingStatus
        removed = dict.fromkeys(self._models - models.keys(), False)
        self._models.update(models)
        server = (OVERALL_HEALTH, *(service.full_name for service in SERVICES))
        for name, state in {**removed, **models, **dict.fromkeys(server, serving)}.items():
            await self.set(name, status.SERVING if state else status.NOT_SERVING)

    def end_watches(self) -> None:
        """End the `Watch` calls after they have sent the current state. Otherwise, they would last as long as their clients stay."""
        self._ending.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]) -> None:  # noqa: N802
        """Send the health of a service, and each change to it, until the client leaves or the server stops."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            ending.cancel()
