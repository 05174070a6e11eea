"""TLS credentials of a client, and the diagnosis of failed connections, because gRPC does not report why a connection failed."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import grpc

from tlcli.contract.errors import SettingsError
from tlcli.service.security.certificates import as_text, read_authorities, read_identity

_PATIENCE_S = 3.0
"""Time limit in seconds for the test handshake that diagnoses a failed connection."""

_EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 10, 62, 64
"""OpenSSL error codes `X509_V_ERR_CERT_HAS_EXPIRED`, `X509_V_ERR_HOSTNAME_MISMATCH` and `X509_V_ERR_IP_ADDRESS_MISMATCH`."""


class ClientTls:
    """TLS credentials of a client, read from files once.

    credentials: credentials for gRPC channels.
    shows_certificate: True if the client presents a certificate.
    """

    def __init__(self, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> None:
        """Read the PEM files; see `tlcli.service.client.connection.Connection`.

        Raises:
            SettingsError: a file cannot be used, or only one of `certificate` and `key` is set.
        """
        if (certificate is None) != (key is None):
            raise SettingsError(f"{'tls_key' if key is None else 'tls_certificate'} is not set: set both the certificate and its key")
        self.context = ssl.create_default_context()
        """Context for the test handshake that diagnoses a failed connection."""
        authorities = None if ca is None else read_authorities(ca, "tls_ca")
        if authorities is not None:
            self.context = ssl.create_default_context(cadata=as_text(authorities))
        self.shows_certificate = certificate is not None
        identity = None
        if certificate is not None and key is not None:
            identity = read_identity(certificate, key)
            self.context.load_cert_chain(certificate, key, password="")
        self.credentials = grpc.ssl_channel_credentials(
            authorities, None if identity is None else identity.key, None if identity is None else identity.certificate
        )


def why_unreachable(host: str, port: int, tls: ClientTls | None) -> str:
    """Find out with a test handshake why a client cannot connect to a listening server. Return an empty string if unknown."""
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE_S) as connection:
            return _without_tls(connection) if tls is None else _with_tls(connection, host, tls)
    except (OSError, UnicodeError):  # no server listens, or it does not respond in time
        return ""


def _with_tls(connection: socket.socket, host: str, tls: ClientTls) -> str:
    tls.context.set_alpn_protocols(["h2"])
    try:
        with tls.context.wrap_socket(connection, server_hostname=host) as secured:
            if _is_accepted(secured):
                return ""
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is rejected: {error.verify_message.rstrip('.')}: {_advice(error.verify_code)}"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
            return "the server does not use TLS: connect without tls_ca, or start the server with tls_certificate and tls_key"
        return f"the TLS handshake failed: {error.reason or error}"
    if tls.shows_certificate:
        return "the server rejects the client's certificate: expected one that has not expired, from an authority in its tls_client_ca"
    return "the server requires a client certificate: set tls_certificate and tls_key (--tls-certificate, --tls-key)"


def _without_tls(connection: socket.socket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent: this only finds out whether the server speaks TLS
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection):
        return "the server uses TLS: set its authority with tls_ca (--tls-ca), or trust public authorities with tls (--tls)"


def _is_accepted(secured: ssl.SSLSocket) -> bool:
    """Return True if the server accepts the client and sends data first, as HTTP/2 requires.

    With TLS 1.3, a server that rejects the client completes the handshake and then closes the connection.
    """
    try:
        return secured.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def _advice(code: int) -> str:
    if code == _EXPIRED:
        return "renew it on the server"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "connect to a host that it names (--host), or renew it with this host"
    return "set the authority that signed it with tls_ca (--tls-ca)"
