"""TLS for the HTTP server. It uses the same files as gRPC; they may be replaced while the server runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.service.security.certificates import as_text, read_authorities, read_identity
from tlcli.service.system.reloading_file import ReloadingFile


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Create the TLS context for a port. The files are checked for changes on each connection, as in `grpc_credentials`.

    Args:
        certificate: PEM file with the server's certificate chain.
        key: PEM file with the server's private key.
        client_ca: PEM file with the certificate authorities that sign client certificates; None if clients need no certificate.

    Raises:
        SettingsError: the files cannot be used; see `tlcli.service.security.certificates`.
    """

    def read() -> ssl.SSLContext:
        read_identity(certificate, key)  # raises an error with a clear message if the files are unusable
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
    listening.sni_callback = renew  # called on each handshake, even if the client sends no host name
    return listening
