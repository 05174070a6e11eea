"""gRPC server that listens on an address and runs the services behind interceptors."""

from __future__ import annotations

import logging
import socket
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from tlcli.contract.errors import SettingsError
from tlcli.service.inference.components import Components
from tlcli.service.rpc.classifier_servicer import ClassifierServicer
from tlcli.service.rpc.health_servicer import HealthServicer
from tlcli.service.rpc.interceptors import DrainInterceptor, SmallMessageInterceptor, TokenInterceptor, UnreadMessageInterceptor
from tlcli.service.rpc.open_inference_servicer import OpenInferenceServicer
from tlcli.service.rpc.reflection import enable_reflection
from tlcli.service.rpc.request_interceptor import RequestInterceptor
from tlcli.service.security.grpc_credentials import server_credentials
from tlcli.service.security.tokens import Token
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.system.addresses import join_address
from tlcli.service.system.reloading_file import ReloadingFile

logger = logging.getLogger(__name__)

_TIMEOUTS = (
    ("grpc.server_handshake_timeout_ms", 10_000),
    # If a client vanishes without closing its connection, the connection ends within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # An idle client reconnects when it sends its next call.
    ("grpc.max_connection_idle_ms", 600_000),
)
"""Connection timeouts. gRPC itself closes connections that ping too often (`too_many_pings`)."""


class Grpc:
    """gRPC server that listens as soon as it is created and handles requests between `start` and `stop`.

    port: port of the server.
    health: health servicer of the server.
    """

    def __init__(self, components: Components, tokens: ReloadingFile[tuple[Token, ...]] | None) -> None:
        """Listen on the configured address.

        Args:
            components: server components that handle the requests.
            tokens: accepted tokens; None if requests need no token.

        Raises:
            SettingsError: the server cannot listen on the address, or the certificates cannot be used.
        """
        settings = components.settings
        self.health = HealthServicer()
        self._drain = DrainInterceptor()
        self._unread = UnreadMessageInterceptor(components.budget.total_bytes)
        self._server = grpc.aio.server(
            interceptors=[self._unread, *interceptors(components, tokens, self._drain)],
            options=[
                ("grpc.max_receive_message_length", components.max_message_bytes),
                # By default, a second server on the same port would start without an error, and each would receive some of the requests.
                ("grpc.so_reuseport", int(settings.reuse_port)),
                ("grpc.max_allowed_incoming_connections", components.max_connections),
                ("grpc.max_concurrent_streams", settings.max_streams),
                *_TIMEOUTS,
                *_connection_age(settings.max_connection_age_s),
            ],
        )
        self._add_services(components)
        self.port = _listen(self._server, settings, _credentials(settings))

    async def start(self) -> None:
        """Start answering requests."""
        await self._server.start()

    def loaded(self) -> None:
        """Reset the baseline for memory growth. Called after models are loaded or unloaded."""
        self._unread.begin()

    def drain(self, closes_in_s: float) -> None:
        """Reject new requests with a retry delay.

        Args:
            closes_in_s: seconds until the server closes its connections.
        """
        self._drain.drain(closes_in_s)

    async def stop(self, grace_s: float) -> None:
        """Stop accepting requests and finish in-flight requests. Cancel the requests that remain after `grace_s` seconds."""
        await self._server.stop(grace_s or None)

    def _add_services(self, components: Components) -> None:
        self._server.add_generic_rpc_handlers(handlers(components))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        enable_reflection(self._server)


def handlers(components: Components) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """Return the generic handlers of both services."""
    repository, budget, settings = components.repository, components.budget, components.settings
    classifier = ClassifierServicer(components.classifier, repository, settings.stream_in_flight, settings.stream_idle_s, budget)
    open_inference = OpenInferenceServicer(components.open_inference, repository, components.control, components.is_serving, budget)
    return classifier.handler(), open_inference.handler()


def interceptors(
    components: Components, tokens: ReloadingFile[tuple[Token, ...]] | None, drain: DrainInterceptor | None = None
) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic in the stubs only
    """Return the interceptors, outermost first. The first one records calls, including those that the others reject."""
    others = [SmallMessageInterceptor(), drain, None if tokens is None else TokenInterceptor(tokens)]
    return [RequestInterceptor(components.recorder), *(interceptor for interceptor in others if interceptor is not None)]


def _connection_age(age_s: float) -> list[tuple[str, int]]:
    """Return the channel options that limit the age of connections.

    gRPC varies the age by up to a tenth so that not all clients reconnect at once. Calls in progress end normally.
    """
    return [("grpc.max_connection_age_ms", max(1, round(1000 * age_s)))] if age_s else []


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    credentials = server_credentials(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    clients = "any client" if settings.tls_client_ca is None else f"clients with a certificate of {settings.tls_client_ca}"
    logger.info("TLS with %s, for %s", settings.tls_certificate, clients)
    return credentials


def _listen(server: grpc.aio.Server, settings: ServerSettings, credentials: grpc.ServerCredentials | None) -> int:
    host, port = settings.host, settings.port
    address = join_address(host, port)
    remedy = "choose another address with --host and --port (--port 0 takes a free port)"
    try:
        # A plain socket is bound first, because gRPC does not report why it cannot listen.
        family, kind, protocol, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if settings.reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(sockaddr)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}: {remedy}") from error
    try:
        return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {address}: {error}: {remedy}") from error
