"""TLS for HTTP, of the same files as gRPC's, which may be renewed while the server serves."""

from __future__ import annotations

import ssl
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.service.security.certificates import as_text, read_authorities, read_identity
from tlcli.service.system.reloading_file import ReloadingFile


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """For a port. The files are looked at whenever a client connects, as with `tlcli.service.security.grpc_credentials.server_credentials`.

    Raises:
        SettingsError: the files cannot be used; see `tlcli.service.security.certificates`.
    """

    def read() -> ssl.SSLContext:
        read_identity(certificate, key)  # which says what is wrong with them
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise SettingsError(f"tls_certificate {certificate}: written while it was read") from error
        if client_ca is not None:
            context.load_verify_locations(cadata=as_text(read_authorities(client_ca, "tls_client_ca")))
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = 0  # a session that is resumed would show no certificate again
        return context

    renewed = ReloadingFile("the TLS certificate of HTTP", [certificate, key, *([] if client_ca is None else [client_ca])], read)

    def renew(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = renewed.get()

    listening = read()
    listening.sni_callback = renew  # called at each handshake, also where the client names no host
    return listening
