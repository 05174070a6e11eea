"""TLS of the HTTP server, from the same files as gRPC's, which may be replaced while the server runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.service.security.certificates import as_text, read_authorities, read_identity
from tlcli.service.system.reloading_file import ReloadingFile


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Create the TLS context of a port. The files are checked for changes at each connection, as `grpc_credentials` does.

    Args:
        certificate: the server's certificate chain, PEM.
        key: its private key, PEM.
        client_ca: authorities of client certificates, PEM; None if clients need none.

    Raises:
        SettingsError: the files cannot be used; see `tlcli.service.security.certificates`.
    """

    def read() -> ssl.SSLContext:
        read_identity(certificate, key)  # raises a clear message for unusable files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise SettingsError(f"tls_certificate {certificate}: changed while it was read: retry") from error
        if client_ca is not None:
            context.load_verify_locations(cadata=as_text(read_authorities(client_ca, "tls_client_ca")))
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = 0  # a resumed session would not present its certificate again
        return context

    renewed = ReloadingFile("the TLS certificate of HTTP", [certificate, key, *([] if client_ca is None else [client_ca])], read)

    def renew(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = renewed.get()

    listening = read()
    listening.sni_callback = renew  # called at each handshake, even if the client names no host
    return listening
