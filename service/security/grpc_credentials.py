"""TLS credentials of the gRPC server, reloaded when their files change."""

from __future__ import annotations

from pathlib import Path

import grpc

from tlcli.service.security.certificates import read_authorities, read_identity
from tlcli.service.system.reloading_file import ReloadingFile


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Build the TLS credentials for a server port.

    The files are checked for changes whenever a client connects. Open connections keep the certificate that they started with.

    Args:
        certificate, key: PEM files of the server's certificate and private key.
        client_ca: PEM file of certificate authorities. Clients must present a certificate signed by one of them. None: clients need no
            certificate.

    Raises:
        SettingsError: the files cannot be used; see `tlcli.service.security.certificates`.
    """

    def read() -> grpc.ServerCertificateConfiguration:
        identity = read_identity(certificate, key)
        authorities = None if client_ca is None else read_authorities(client_ca, "tls_client_ca")
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], authorities)

    configuration = ReloadingFile("the TLS certificate", [certificate, key, *([] if client_ca is None else [client_ca])], read)
    in_use = configuration.get()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration once after each change, because gRPC takes ownership of it. Return None if nothing changed."""
        nonlocal in_use
        before, in_use = in_use, configuration.get()
        return None if in_use is before else in_use

    # Returning None means no change, which the type stubs do not declare.
    return grpc.dynamic_ssl_server_credentials(in_use, fetch, client_ca is not None)  # type: ignore[arg-type]
