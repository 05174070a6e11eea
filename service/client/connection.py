"""What both clients connect with: address, encryption, token, and what is tried again."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import grpc
import grpc.aio

from tlcli.contract.errors import OverloadedError, SettingsError, TlcliError
from tlcli.service.client.client_tls import ClientTls, why_unreachable
from tlcli.service.protocol import error_status
from tlcli.service.security.tokens import require_token
from tlcli.service.system.addresses import is_loopback, join_address, parse_target

_RETRY_BUFFER_BYTES = 64 * 1024 * 1024
"""gRPC sends again what it has kept; by default no image of more than 256 KiB."""

_NAME, _VALUE = re.compile(r"[0-9a-z_.-]+(?<!-bin)"), re.compile(r"[ -~]*")
"""Of metadata, as gRPC over HTTP/2 has it."""


class How(TypedDict, total=False):
    """What `Connection` takes beside the address."""

    tls: bool
    tls_ca: str | Path | None
    tls_certificate: str | Path | None
    tls_key: str | Path | None
    token: str | None
    retries: int
    metadata: Sequence[tuple[str, str]]


class Connection:
    """How a server is reached; nothing is connected yet.

    metadata: goes with each call.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        *,
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_certificate: str | Path | None = None,
        tls_key: str | Path | None = None,
        token: str | None = None,
        retries: int = 4,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Reads the files.

        Args:
            host, port: where the server listens, see `addresses.parse_target`. Where the name has several addresses, requests go
                to all of them in turn.
            tls: encrypt, and trust the authorities that gRPC brings along; any of the three that follow does so too.
            tls_ca: a PEM file: trust these authorities instead.
            tls_certificate, tls_key: PEM files: what this client shows of itself.
            token: sent with each call.
            retries: how often a call is made again where the server could not be reached or was too busy, within its time. Asking
                twice does no harm: a server keeps nothing of a request.
            metadata: more that is sent with each call, for what stands between: names in small letters, and values.

        Raises:
            SettingsError: a file that cannot be used, a certificate without its key, a text that is no token, a token that would
                travel unencrypted beyond this machine, a number below 0, or metadata that cannot be sent.
        """
        if retries < 0:
            raise SettingsError(f"retries {retries}: expected 0 or more")
        for name, value in metadata:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise SettingsError(f"metadata {name!r}: expected a name of a-z, 0-9 and _.-, not ending in -bin, and a value in ASCII")
        host, port, secured = parse_target(host, port)
        self.address = join_address(host, port)
        self.retries = retries
        files = [None if path is None else Path(path) for path in (tls_ca, tls_certificate, tls_key)]
        self._secured = ClientTls(*files) if tls or secured or any(files) else None
        if token is not None:
            require_token(token)
            if self._secured is None and not is_loopback(host):
                raise SettingsError(f"a token for {self.address} would travel unencrypted: use TLS, with tls_ca (--tls-ca) or tls (--tls)")
        self.metadata = (*metadata, *(() if token is None else [("authorization", f"Bearer {token}")]))
        self.why_unreachable = partial(why_unreachable, host, port, self._secured)
        self._options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", -1),  # overlays of many classes pass gRPC's 4 MB
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),  # a server that starts is found within a second
            ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
            ("grpc.enable_retries", int(retries > 0)),
            ("grpc.service_config", json.dumps(_service_config(retries, spread=not is_loopback(host)))),
        ]
        if is_loopback(host):
            self._options.append(("grpc.enable_http_proxy", 0))  # no proxy knows the way to this machine's own ports

    def channel(self) -> grpc.Channel:
        """For calls from threads."""
        if self._secured is None:
            return grpc.insecure_channel(self.address, options=self._options)
        return grpc.secure_channel(self.address, self._secured.credentials, options=self._options)

    def aio_channel(self) -> grpc.aio.Channel:
        """For calls from the running event loop."""
        if self._secured is None:
            return grpc.aio.insecure_channel(self.address, options=self._options)
        return grpc.aio.secure_channel(self.address, self._secured.credentials, options=self._options)

    def error(self, error: grpc.RpcError) -> TlcliError:
        """What a failed call means."""
        return error_status.from_rpc_error(error, self.address, self.why_unreachable)

    def why_not_ready(self, waited_s: float, model: str = "") -> str:
        """What to say of a server, or a model of it, that was not ready in time."""
        if reason := self.why_unreachable():
            return f"{self.address}: {reason}"
        what = f"model {model!r}" if model else "no server"
        return f"{what} was ready at {self.address} within {waited_s:g} s: see the server's log"

    def pause_s(self, error: OverloadedError, attempt: int, left_s: float) -> float | None:
        """How long to wait before a busy server is asked again: what it says, and longer each time; None where it is not worth it.

        Args:
            error: what it answered.
            attempt: how often it was asked.
            left_s: of the call's time.
        """
        pause_s = error.retry_s * 2 ** (attempt - 1) * random.uniform(1.0, 1.5)  # so that not all come at once
        return pause_s if attempt <= self.retries and pause_s < left_s else None


def _service_config(retries: int, spread: bool) -> dict[str, object]:
    """As gRPC reads it (grpc.service_config.ServiceConfig).

    Args:
        retries: how often a call is made again.
        spread: where a name stands for several addresses, such as that of a headless Service, send requests to all of them in turn, and not
            all to one. `localhost` may stand for two of which nobody listens at the other.
    """
    config: dict[str, object] = {}
    if spread:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
    if retries:
        policy = {
            "maxAttempts": min(5, retries + 1),  # more are not allowed
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": [{"service": "tlcli.v1.Classifier"}], "retryPolicy": policy}]
    return config
