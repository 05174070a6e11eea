"""gRPC as a part of a server: its services, behind those who observe requests and send some away, on an address."""

from __future__ import annotations

import logging
import socket
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from tlcli.contract.errors import SettingsError
from tlcli.service.inference.components import Parts
from tlcli.service.rpc.classifier_servicer import ClassifierEdge
from tlcli.service.rpc.drain_interceptor import LeavingGuard
from tlcli.service.rpc.health_servicer import Health
from tlcli.service.rpc.message_limit import SmallMessages
from tlcli.service.rpc.open_inference_servicer import OpenInferenceEdge
from tlcli.service.rpc.reflection import enable_reflection
from tlcli.service.rpc.token_interceptor import TokenGuard
from tlcli.service.rpc.unread_messages import UnreadMessages
from tlcli.service.security.grpc_credentials import server_credentials
from tlcli.service.security.tokens import Token
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.system.addresses import join_address
from tlcli.service.system.reloading_file import ReloadingFile

logger = logging.getLogger(__name__)

_PATIENCE = (
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A client that has vanished without a word is found, and its connection ended, within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # One that asks nothing connects anew when it does.
    ("grpc.max_connection_idle_ms", 600_000),
)
"""With clients; pings that come more often than gRPC allows end a connection by themselves (`too_many_pings`)."""


class Grpc:
    """Listens from the start, answers from `start` to `stop`. port: that it has; health: what it says."""

    def __init__(self, parts: Parts, tokens: ReloadingFile[tuple[Token, ...]] | None) -> None:
        """tokens: that requests must carry one of; None: they need none.

        Raises:
            SettingsError: the address cannot be listened at, or the certificates cannot be used.
        """
        settings = parts.settings
        self.health = Health()
        self._leaving = LeavingGuard()
        self._unread = UnreadMessages(parts.budget.total_bytes)
        self._server = grpc.aio.server(
            interceptors=[self._unread, *interceptors(parts, tokens, self._leaving)],
            options=[
                ("grpc.max_receive_message_length", parts.max_message_bytes),
                # Unasked, a second server on the same port would start without a word, and each get some of the requests.
                ("grpc.so_reuseport", int(settings.reuse_port)),
                ("grpc.max_allowed_incoming_connections", parts.max_connections),
                ("grpc.max_concurrent_streams", settings.max_streams),
                *_PATIENCE,
                *_connection_age(settings.max_connection_age_s),
            ],
        )
        self._add_services(parts)
        self.port = _listen(self._server, settings, _credentials(settings))

    async def start(self) -> None:
        """Take requests."""
        await self._server.start()

    def loaded(self) -> None:
        """Count the memory of the models, which have changed, as the server's own."""
        self._unread.begin()

    def leave(self, in_s: float) -> None:
        """Send new requests away: it hangs up in so many seconds."""
        self._leaving.leave(in_s)

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and wait for those in flight; what is left of them after `grace_s` is cancelled."""
        await self._server.stop(grace_s or None)

    def _add_services(self, parts: Parts) -> None:
        self._server.add_generic_rpc_handlers(handlers(parts))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        enable_reflection(self._server)


def handlers(parts: Parts) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """The calls of both our protocols, answered from the parts."""
    return (
        ClassifierEdge(
            parts.classifier, parts.repository, parts.settings.stream_in_flight, parts.settings.stream_idle_s, parts.budget
        ).handler(),
        OpenInferenceEdge(parts.open_inference, parts.repository, parts.control, parts.is_serving, parts.budget).handler(),
    )


def interceptors(
    parts: Parts, tokens: ReloadingFile[tuple[Token, ...]] | None, leaving: LeavingGuard | None = None
) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic in the stubs alone
    """What stands in front of the calls: who observes them comes first, so that what the others refuse is seen too."""
    guards = [SmallMessages(), leaving, None if tokens is None else TokenGuard(tokens)]
    return [parts.observer, *(guard for guard in guards if guard is not None)]


def _connection_age(age_s: float) -> list[tuple[str, int]]:
    """gRPC adds up to a tenth, or takes it off, so that not all clients come back at once. What is under way ends as it would."""
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
