"""Connection options of both clients: address, encryption, token and retries."""

from __future__ import annotations

import json
import random
import re
import time
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
"""Maximum size of a message that gRPC buffers for retries. The default of 256 KiB is smaller than many images."""

_NAME, _VALUE = re.compile(r"[0-9a-z_.-]+(?<!-bin)"), re.compile(r"[ -~]*")
"""Patterns of the metadata names and values that gRPC allows over HTTP/2."""


class ConnectionOptions(TypedDict, total=False):
    """Keyword options of `Connection`, which do not include the address."""

    tls: bool
    tls_ca: str | Path | None
    tls_certificate: str | Path | None
    tls_key: str | Path | None
    token: str | None
    retries: int
    metadata: Sequence[tuple[str, str]]


class Connection:
    """Address, credentials and retry policy for one server. Channels connect on their first call.

    metadata: metadata sent with each call.
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
        """Check the options and read the certificate files. No connection is opened yet.

        Args:
            host, port: address of the server; see `addresses.parse_target`. If the host name resolves to several addresses, requests
                are distributed over all of them.
            tls: encrypt the connection and trust the certificate authorities that come with gRPC. Each of the next three options
                enables TLS as well.
            tls_ca: PEM file of the certificate authorities to trust instead.
            tls_certificate, tls_key: PEM files of the client's own certificate and private key.
            token: access token, sent with each call.
            retries: number of retries, within the timeout of the call, if the server cannot be reached or is overloaded. A retry is
                always safe, because a server keeps no state between requests.
            metadata: additional metadata to send with each call, for example for proxies, as pairs of a lower-case name and a value.

        Raises:
            SettingsError: a file cannot be used, a certificate has no key, the token is invalid or would travel unencrypted beyond
                this machine, `retries` is negative, or the metadata cannot be sent.
        """
        if retries < 0:
            raise SettingsError(f"retries {retries}: expected 0 or more")
        for name, value in metadata:
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise SettingsError(f"metadata {name!r}: expected a name of a-z, 0-9 and _.-, not ending in -bin, and a value in ASCII")
        host, port, secured = parse_target(host, port)
        self.address = join_address(host, port)
        self._retries = retries
        files = [None if path is None else Path(path) for path in (tls_ca, tls_certificate, tls_key)]
        self._secured = ClientTls(*files) if tls or secured or any(files) else None
        if token is not None:
            require_token(token)
            if self._secured is None and not is_loopback(host):
                raise SettingsError(
                    f"the token for {self.address} would travel unencrypted: use TLS, with tls_ca (--tls-ca) or tls (--tls)"
                )
        self.metadata = (*metadata, *(() if token is None else [("authorization", f"Bearer {token}")]))
        self.why_unreachable = partial(why_unreachable, host, port, self._secured)
        self._options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", -1),  # overlays of many classes exceed gRPC's default of 4 MB
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),  # find a server that has just started within a second
            ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
            ("grpc.enable_retries", int(retries > 0)),
            ("grpc.service_config", json.dumps(_service_config(retries, spread=not is_loopback(host)))),
        ]
        if is_loopback(host):
            self._options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach ports of this machine

    def channel(self) -> grpc.Channel:
        """Open a channel for synchronous calls from threads."""
        if self._secured is None:
            return grpc.insecure_channel(self.address, options=self._options)
        return grpc.secure_channel(self.address, self._secured.credentials, options=self._options)

    def aio_channel(self) -> grpc.aio.Channel:
        """Open a channel for asynchronous calls from the running event loop."""
        if self._secured is None:
            return grpc.aio.insecure_channel(self.address, options=self._options)
        return grpc.aio.secure_channel(self.address, self._secured.credentials, options=self._options)

    def error(self, error: grpc.RpcError) -> TlcliError:
        """Convert gRPC's error of a failed call to a `TlcliError`."""
        return error_status.from_rpc_error(error, self.address, self.why_unreachable)

    def why_not_ready(self, waited_s: float, model: str = "") -> str:
        """Return the error message for a server or model that was not ready in time."""
        if reason := self.why_unreachable():
            return f"{self.address}: {reason}"
        what = f"model {model!r}" if model else "no server"
        return f"{what} was ready at {self.address} within {waited_s:g} s: see the server's log"

    def backoff(self, timeout_s: float | None) -> Backoff:
        """Create the backoff for one call with the given timeout."""
        return Backoff(self._retries, timeout_s)


class Backoff:
    """Retry delays for one call to an overloaded server, within the timeout of the call."""

    def __init__(self, retries: int, timeout_s: float | None) -> None:
        self._retries = retries
        self._attempts = 0
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Return the remaining time of the call in seconds, or None if it has no timeout."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def pause_s(self, error: OverloadedError) -> float:
        """Return the delay in seconds before the next attempt: the server's retry delay, doubled with each attempt, plus jitter.

        Raises:
            OverloadedError: no retry is left, or the delay would exceed the timeout; this is `error` itself.
        """
        pause_s: float = error.retry_s * 2**self._attempts * random.uniform(1.0, 1.5)
        self._attempts += 1
        left_s = self.left_s()
        if self._attempts > self._retries or (left_s is not None and pause_s >= left_s):
            raise error
        return pause_s


def _service_config(retries: int, spread: bool) -> dict[str, object]:
    """Build the service configuration of the channel (grpc.service_config.ServiceConfig).

    Args:
        retries: number of retries per call.
        spread: distribute requests over all addresses of a host name, such as that of a headless Service. This does not work for
            `localhost`, which may have two addresses although the server listens on only one.
    """
    config: dict[str, object] = {}
    if spread:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
    if retries:
        policy = {
            "maxAttempts": min(5, retries + 1),  # the maximum that gRPC allows
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": [{"service": "tlcli.v1.Classifier"}], "retryPolicy": policy}]
    return config
