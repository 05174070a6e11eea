"""TLS as a client has it, and why a server could not be reached, which gRPC hardly says."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import grpc

from tlcli.contract.errors import SettingsError
from tlcli.service.security.certificates import as_text, read_authorities, read_identity

_PATIENCE_S = 3.0
"""For the handshake that is tried to learn why gRPC's has failed."""

_EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 10, 62, 64
"""OpenSSL's `X509_V_ERR_CERT_HAS_EXPIRED`, `X509_V_ERR_HOSTNAME_MISMATCH` and `X509_V_ERR_IP_ADDRESS_MISMATCH`."""


class ClientTls:
    """The files, as they were when this was made."""

    def __init__(self, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> None:
        """See `tlcli.service.Client`.

        Raises:
            SettingsError: a file cannot be used; or a certificate without its key, or the other way round.
        """
        if (certificate is None) != (key is None):
            raise SettingsError(f"{'tls_key' if key is None else 'tls_certificate'} is not given: a certificate and its key go together")
        self.context = ssl.create_default_context()
        """That a handshake can be tried with."""
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
    """What stands between a client and a server that listens, learned from a handshake; empty if nothing was found."""
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE_S) as connection:
            return _without_tls(connection) if tls is None else _with_tls(connection, host, tls)
    except (OSError, UnicodeError):  # nobody listens, or not in time
        return ""


def _with_tls(connection: socket.socket, host: str, tls: ClientTls) -> str:
    tls.context.set_alpn_protocols(["h2"])
    try:
        with tls.context.wrap_socket(connection, server_hostname=host) as secured:
            if _is_heard(secured):
                return ""
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is refused: {error.verify_message.rstrip('.')}: {_advice(error.verify_code)}"
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
            return "the server answers without TLS: ask it without (no tls_ca), or start it with tls_certificate and tls_key"
        return f"the TLS handshake fails: {error.reason or error}"
    if tls.shows_certificate:
        return "the server refuses the client's certificate: expected one that has not expired, of an authority in its tls_client_ca"
    return "the server asks for a client's certificate: give one with tls_certificate and tls_key (--tls-certificate, --tls-key)"


def _without_tls(connection: socket.socket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent: is it TLS at all?
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection):
        return "the server answers with TLS: name its authority with tls_ca (--tls-ca), or take those that all know with tls (--tls)"


def _is_heard(secured: ssl.SSLSocket) -> bool:
    """A server of HTTP/2 speaks first. With TLS 1.3, one that refuses the client hangs up instead, after the handshake."""
    try:
        return secured.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def _advice(code: int) -> str:
    if code == _EXPIRED:
        return "renew it at the server"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "ask for a host that it names (--host), or renew it with this one"
    return "name the authority that made it with tls_ca (--tls-ca)"
