"""Server lifecycle: listen, load the models, serve, drain, close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tlcli.contract.model.onnx_model import resolve_device
from tlcli.contract.process.malloc import trim_freed_memory
from tlcli.service.inference.components import Components
from tlcli.service.rpc.grpc_server import Grpc
from tlcli.service.security.tokens import Token, reloading_tokens
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.system.addresses import join_address
from tlcli.service.system.reloading_file import ReloadingFile
from tlcli.service.telemetry.gpu_memory import open_gpus
from tlcli.service.types.answer import ModelStatus

if TYPE_CHECKING:
    from tlcli.service.rest.component import Http

logger = logging.getLogger(__name__)

_SETTLE_S = 0.2
"""Seconds during which a stopping server still accepts requests that wait in socket buffers. gRPC would cancel them.

Without this delay, a signal sent directly after 64 requests lost four fifths of them. With 0.1 s, it lost none.
"""

_DRAIN_S = 0.2
"""Seconds before closing during which new requests are rejected with a retry delay; see `DrainInterceptor`."""

_WATCH_S = 0.5
_STUCK = 2
"""Multiple of `max_decode_s` after which a decoding thread counts as stuck."""

_LARGE_BYTES = 16 << 20
"""Drop in request memory after which freed memory is returned to the operating system, even if it lies between blocks in use."""


class Server:
    """Server bound to one event loop. Call `run`, or call `start`, `load` and `stop` separately.

    The port is open while the models load. Meanwhile, health checks return NOT_SERVING and requests fail with UNAVAILABLE.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Build the components of the server without opening a port.

        Raises:
            SettingsError: traces cannot be sent to `otel_endpoint`.
        """
        self._settings = settings
        self._parts = Components.of(settings, on_change=self._announce, is_serving=self._is_ready)
        self._serving = False
        self._grpc: Grpc | None = None
        self._http: Http | None = None
        self._decodes = True
        self._announced: tuple[ModelStatus, ...] = ()
        self._watching: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_listening: Callable[[int], None] | None = None, on_serving: Callable[[int], None] | None = None) -> None:
        """Start the server and serve until `request_stop` is called.

        Args:
            on_listening: callback that receives the port once it is open.
            on_serving: callback that receives the port once the models are loaded and health checks return SERVING.

        Raises:
            TlcliError: see `start` and `load`.
        """
        port = await self.start()
        loading = asyncio.create_task(self.load())
        stopping = asyncio.create_task(self._stop_requested.wait())
        try:
            if on_listening is not None:
                on_listening(port)
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                if on_serving is not None:
                    on_serving(port)
                await stopping
        finally:
            loading.cancel()
            stopping.cancel()
            await self.stop()

    def request_stop(self) -> None:
        """Make `run` stop after the in-flight requests have finished. A second call stops it without waiting for them.

        Must be called from the event loop's thread.
        """
        if self._stop_requested.is_set():
            self._hurry.set()
        self._stop_requested.set()

    async def start(self) -> int:
        """Check the device and the model repository, and start listening. Health checks return NOT_SERVING.

        Returns:
            Port for gRPC.

        Raises:
            DeviceError: the device is not available.
            NotFoundError: the model repository does not exist or holds no model.
            SettingsError: the address, the certificates or the tokens cannot be used.
        """
        device = resolve_device(self._settings.device)
        self._parts.repository.discover()
        logger.info("device: %s (setting: %s)", device, self._settings.device)
        tokens = reloading_tokens(self._settings.tokens_file)
        self._serve_metrics(device)
        try:
            self._http = self._listen_for_http(tokens)
            server = Grpc(self._parts, tokens)
        except BaseException:
            if self._http is not None:
                self._http.close()
            self._parts.metrics.close()
            raise
        await server.health.announce(False, self._parts.repository.serving())
        await server.start()
        if self._http is not None:
            await self._http.start()
        self._grpc = server
        logger.info("listening on %s", join_address(self._settings.host, server.port))
        return server.port

    def _listen_for_http(self, tokens: ReloadingFile[tuple[Token, ...]] | None) -> Http | None:
        port = self._settings.http_port
        if port is None:
            return None
        from tlcli.service.rest.component import Http  # imported on use: its libraries take a tenth of a second

        http = Http(self._parts, port, tokens)
        logger.info("HTTP at %s, with documentation at /docs", http.address)
        return http

    def _serve_metrics(self, device: str) -> None:
        settings = self._settings
        if settings.metrics_port is not None:
            port = self._parts.metrics.serve(settings.metrics_host, settings.metrics_port, settings.reuse_port)
            logger.info("metrics at http://%s/metrics", join_address(settings.metrics_host, port))
            if device == "cuda":
                self._parts.metrics.watch_gpus(open_gpus())

    async def load(self) -> None:
        """Load and warm up the models. Health checks then return SERVING.

        Raises:
            ModelFileError: no model can be served.
            DeviceError: the device cannot be used.
        """
        await self._parts.repository.load()
        self._serving = True
        await self._announce()
        self._following = asyncio.create_task(self._parts.control.follow())
        self._watching = asyncio.create_task(self._watch())
        states = self._parts.repository.serving()
        logger.info("serving %d of %d models", sum(states.values()), len(states))

    def _is_ready(self) -> bool:
        return self._serving and self._decodes

    async def _announce(self) -> None:
        if self._serving and self._grpc is not None:
            if (statuses := self._parts.repository.statuses()) != self._announced:
                self._announced = statuses
                self._grpc.loaded()
            await self._grpc.health.announce(self._decodes, self._parts.repository.serving())

    async def _watch(self) -> None:
        """Report NOT_SERVING while all decoding threads are stuck, and return freed memory to the system after large requests."""
        stuck_s = _STUCK * self._settings.max_decode_s
        while True:
            await asyncio.sleep(_WATCH_S)
            decodes = not self._parts.workers.stuck(stuck_s)
            if decodes != self._decodes:
                self._decodes = decodes
                logger.log(
                    logging.INFO if decodes else logging.ERROR,
                    "images can be decoded again" if decodes else "not ready: every decoding thread has been busy with one image for %g s",
                    *(() if decodes else (stuck_s,)),
                )
                await self._announce()
            if self._parts.budget.take_peak() - self._parts.budget.used_bytes > _LARGE_BYTES:
                await asyncio.to_thread(trim_freed_memory)

    async def stop(self) -> None:
        """Report NOT_SERVING, wait for load balancers to notice, finish in-flight requests, and close the server."""
        if self._grpc is None:
            return
        logger.info("stopping: in-flight requests have %g s to finish", self._settings.grace_s)
        self._serving = False
        for task in (self._following, self._watching):
            if task is not None:
                task.cancel()
        await self._grpc.health.enter_graceful_shutdown()
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({hurried}, timeout=max(self._settings.pre_stop_s, _SETTLE_S))
        self._grpc.drain(_DRAIN_S)
        await asyncio.wait({hurried}, timeout=_DRAIN_S)
        self._grpc.health.end_watches()
        draining = asyncio.create_task(self._drain(self._settings.grace_s))
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await self._drain(0)
        await draining
        hurried.cancel()
        await self._parts.close()
        logger.info("stopped")

    async def _drain(self, grace_s: float) -> None:
        """Reject new requests and wait for in-flight requests. Cancel those that still run after `grace_s` seconds."""
        assert self._grpc is not None
        stopping = [self._grpc.stop(grace_s)]
        if self._http is not None:
            stopping.append(self._http.stop(grace_s))
        await asyncio.gather(*stopping)
