"""TLS credentials of the gRPC server, reloaded when their files change."""

from __future__ import annotations

from pathlib import Path

import grpc

from tlcli.service.security.certificates import read_authorities, read_identity
from tlcli.service.system.reloading_file import ReloadingFile


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Build the credentials for a port.

    The files are checked for changes whenever a client connects. Open connections keep the certificate that they started with.

    Args:
        certificate, key: PEM files.
        client_ca: PEM file of authorities; clients must present a certificate signed by one of them. None: clients need none.

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
        """Return the configuration once after each change, since gRPC takes ownership of the object; else None."""
        nonlocal in_use
        before, in_use = in_use, configuration.get()
        return None if in_use is before else in_use

    # None means no change; the stubs do not know it.
    return grpc.dynamic_ssl_server_credentials(in_use, fetch, client_ca is not None)  # type: ignore[arg-type]
