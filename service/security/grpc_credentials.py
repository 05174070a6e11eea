"""TLS on the server's port; its files may be renewed while it serves."""

from __future__ import annotations

from pathlib import Path

import grpc

from tlcli.service.security.certificates import read_authorities, read_identity
from tlcli.service.system.reloading_file import Renewed


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """For a port.

    The files are looked at whenever a client connects. Connections that stand go on with the certificate they began with.

    Args:
        certificate, key: PEM files.
        client_ca: PEM; clients must show a certificate of one of these authorities. None: they need none.

    Raises:
        SettingsError: the files cannot be used; see `tlcli.service.security.certificates`.
    """

    def read() -> grpc.ServerCertificateConfiguration:
        identity = read_identity(certificate, key)
        authorities = None if client_ca is None else read_authorities(client_ca, "tls_client_ca")
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], authorities)

    renewed = Renewed("the TLS certificate", [certificate, key, *([] if client_ca is None else [client_ca])], read)
    in_use = renewed.get()

    def renew() -> grpc.ServerCertificateConfiguration | None:
        """What is new, once: gRPC takes the object away."""
        nonlocal in_use
        before, in_use = in_use, renewed.get()
        return None if in_use is before else in_use

    # None says that nothing has changed, which the stubs leave out.
    return grpc.dynamic_ssl_server_credentials(in_use, renew, client_ca is not None)  # type: ignore[arg-type]
