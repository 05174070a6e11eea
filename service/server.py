"""A server from its start to its end: listen, load, serve, finish."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from contract.cores import usable_cores
from contract.errors import SettingsError
from contract.model import resolve_device
from service.addresses import join_address
from service.batching import Batching
from service.classifier import Classifier
from service.control import ModelControl
from service.edge import SERVICE, ClassifierEdge
from service.guard import TokenGuard
from service.health import Health
from service.leaving import LeavingGuard
from service.logs import log_request
from service.metrics import Metrics
from service.observed import Tell
from service.observer import Observer
from service.open_inference import OpenInference
from service.open_inference_edge import SERVICE as OPEN_INFERENCE
from service.open_inference_edge import OpenInferenceEdge
from service.pb.inference import open_inference_pb2
from service.pools import Pools
from service.renewing import Renewed
from service.repository import Repository
from service.runner import Runner
from service.settings import ServerSettings
from service.tls import server_credentials
from service.tokens import Token, read_tokens
from service.tracing import open_traces
from service.versions import VersionPolicy
from service.workers import Workers

if TYPE_CHECKING:
    from service.rest.opening import Http

logger = logging.getLogger(__name__)

_ENVELOPE_BYTES = 64 * 1024
"""What a request holds beside its picture: names, ids, class numbers."""

_SETTLE_S = 0.2
"""Requests sent before the stop lie in socket buffers still, where gRPC would cancel them: time to take them in.
Without it, a signal right behind 64 requests lost four fifths of them; with 0.1 s, none."""

_LEAVING_S = 0.2
"""New requests are sent away for so long before the server hangs up; see `service.leaving`."""


class Server:
    """One server, for one event loop: `run`, or `start`, `load` and `stop` step by step.

    The port is open while the models load, so that health can answer NOT_SERVING and requests UNAVAILABLE.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        batching = Batching(settings.max_batch_size, settings.max_queue_delay_ms / 1000)
        self._metrics = Metrics(on=settings.metrics_port is not None)
        open_runner = partial(Runner.open, device=settings.device, threads=settings.threads, batching=batching, metrics=self._metrics)
        policy = VersionPolicy.parse(settings.versions)
        self._repository = Repository(settings.models, open_runner, policy, settings.max_queue_size, self._metrics)
        self._control = ModelControl(self._repository, settings.model_control, settings.poll_s, self._announce)
        self._following: asyncio.Task[None] | None = None
        self._picture_workers = Workers(settings.picture_threads or usable_cores(), name="pictures")
        self._classifier = Classifier(self._repository, self._picture_workers, settings.limits, settings.max_maps, settings.max_picture_s)
        self._open_inference = OpenInference(
            self._repository, self._picture_workers, settings.limits, settings.max_maps, settings.max_picture_s
        )
        self._max_message_bytes = settings.max_message_bytes or settings.limits.max_bytes + _ENVELOPE_BYTES
        self._tokens: Renewed[tuple[Token, ...]] | None = None
        self._health = Health()
        self._leaving = LeavingGuard()
        self._traces = open_traces(settings.otel_endpoint)
        self._observer = Observer(self._told_of_requests())
        self._metrics.watch(lambda: self._observer.in_flight, self._repository.queues)
        self._serving = False
        self._grpc: grpc.aio.Server | None = None
        self._http: Http | None = None
        self._stop_requested = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_listening: Callable[[int], None] | None = None, on_serving: Callable[[int], None] | None = None) -> None:
        """Serve until `request_stop`.

        Args:
            on_listening: called with the port when it is open.
            on_serving: called with the port when the models are loaded and health says SERVING.

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
        """Let `run` end, after the requests in flight; asked a second time, without waiting for them.

        To be called in the event loop's thread.
        """
        if self._stop_requested.is_set():
            self._hurry.set()
        self._stop_requested.set()

    async def start(self) -> int:
        """Look at device, folder and port, and listen. Health says NOT_SERVING.

        Returns:
            The port.

        Raises:
            DeviceError: the device was asked for and is not there.
            NotFoundError: no such folder, or no model in it.
            SettingsError: the address cannot be listened at, or certificates or tokens cannot be used.
        """
        device = resolve_device(self._settings.device)
        self._repository.discover()
        logger.info("device: %s (asked for: %s)", device, self._settings.device)
        await self._health.announce(False, self._repository.serving())
        server = self._assemble()
        credentials = self._credentials()
        self._serve_metrics()
        try:
            self._http = self._listen_for_http()
            port = _listen(server, self._settings, credentials)
        except BaseException:
            if self._http is not None:
                self._http.close()
            self._metrics.close()
            raise
        await server.start()
        if self._http is not None:
            await self._http.start()
        self._grpc = server
        logger.info("listening on %s", join_address(self._settings.host, port))
        return port

    def _assemble(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=self._guards(),
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                # Unasked, a second server on the same port would start without a word, and each get some of the requests.
                ("grpc.so_reuseport", int(self._settings.reuse_port)),
            ],
        )
        ClassifierEdge(self._classifier, self._repository, self._settings.stream_in_flight).add_to(server)
        OpenInferenceEdge(self._open_inference, self._repository, self._control, lambda: self._serving).add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, OPEN_INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        pools = Pools(open_inference_pb2.DESCRIPTOR.pool, descriptor_pool.Default())
        reflection.enable_server_reflection(names, server, pools)  # type: ignore[arg-type]  # it asks no more of a pool than this has
        return server

    def _credentials(self) -> grpc.ServerCredentials | None:
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        credentials = server_credentials(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        clients = "any client" if settings.tls_client_ca is None else f"clients with a certificate of {settings.tls_client_ca}"
        logger.info("TLS with %s, for %s", settings.tls_certificate, clients)
        return credentials

    def _guards(self) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic in the stubs alone
        path = self._settings.tokens_file
        if path is None:
            return [self._observer, self._leaving]
        tokens = Renewed("the list of tokens", [path], lambda: read_tokens(path))
        logger.info("requests must carry a token of %s: %s", path, ", ".join(token.name or "one without a name" for token in tokens.get()))
        self._tokens = tokens
        return [self._observer, self._leaving, TokenGuard(tokens)]

    def _listen_for_http(self) -> Http | None:
        port = self._settings.http_port
        if port is None:
            return None
        from service.rest.opening import Http, Parts  # here: its libraries take a tenth of a second to import

        parts = Parts(
            classifier=self._classifier,
            open_inference=self._open_inference,
            repository=self._repository,
            control=self._control,
            observer=self._observer,
            tokens=self._tokens,
            workers=self._picture_workers,
            is_serving=lambda: self._serving,
            max_bytes=self._max_message_bytes,
        )
        http = Http(self._settings, port, parts)
        logger.info("HTTP at %s, described at /docs", http.address)
        return http

    def _told_of_requests(self) -> list[Tell]:
        """Traces come first: the log names the trace."""
        told: list[Tell] = [] if self._traces is None else [self._traces.take]
        if self._settings.metrics_port is not None:
            told.append(self._metrics.take)
        if self._settings.log_requests:
            told.append(log_request)
        return told

    def _serve_metrics(self) -> None:
        settings = self._settings
        if settings.metrics_port is not None:
            port = self._metrics.serve(settings.metrics_host, settings.metrics_port, settings.reuse_port)
            logger.info("metrics at http://%s/metrics", join_address(settings.metrics_host, port))

    async def load(self) -> None:
        """Load and warm up the models; then health says SERVING.

        Raises:
            ModelFileError: none of the models can be served.
            DeviceError: the device was asked for and cannot be used.
        """
        await self._repository.load()
        self._serving = True
        await self._announce()
        self._following = asyncio.create_task(self._control.follow())
        logger.info("serving %d of %d models", sum(self._repository.serving().values()), len(self._repository.serving()))

    async def _announce(self) -> None:
        if self._serving:
            await self._health.announce(True, self._repository.serving())

    async def stop(self) -> None:
        """Say NOT_SERVING, wait as long as load balancers need to see it, finish what is in flight, and close."""
        if self._grpc is None:
            return
        logger.info("stopping: requests in flight have %g s to finish", self._settings.grace_s)
        self._serving = False
        if self._following is not None:
            self._following.cancel()
        await self._health.enter_graceful_shutdown()
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({hurry}, timeout=max(self._settings.pre_stop_s, _SETTLE_S))
        self._leaving.leave(_LEAVING_S)
        await asyncio.wait({hurry}, timeout=_LEAVING_S)
        self._health.end_watches()
        finishing = asyncio.create_task(self._finish(self._settings.grace_s))
        await asyncio.wait({finishing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not finishing.done():
            await self._finish(0)
        await finishing
        hurry.cancel()
        self._picture_workers.close()
        self._repository.close()
        await asyncio.to_thread(self._metrics.close)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        logger.info("stopped")

    async def _finish(self, grace_s: float) -> None:
        """Take no more requests, and wait for those in flight; what is left of them after that is cancelled."""
        assert self._grpc is not None
        stopping = [self._grpc.stop(grace_s or None)]
        if self._http is not None:
            stopping.append(self._http.stop(grace_s))
        await asyncio.gather(*stopping)


def _listen(server: grpc.aio.Server, settings: ServerSettings, credentials: grpc.ServerCredentials | None) -> int:
    host, port = settings.host, settings.port
    address = join_address(host, port)
    remedy = "choose another with --host and --port (--port 0 takes a free one)"
    try:
        # Tried by hand first: gRPC does not say why it cannot listen.
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if settings.reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}: {remedy}") from error
    try:
        return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address}: {error}: {remedy}") from error
