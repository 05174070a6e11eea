"""PEM certificates and keys. They are validated before gRPC uses them, because gRPC's errors do not describe the problem."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import SettingsError


@dataclass(frozen=True, repr=False)
class Identity:
    """Certificate with its intermediate certificates, and its private key, both in PEM format.

    The fields are excluded from `repr` so that the key never appears in logs.
    """

    certificate: bytes
    key: bytes


def read_identity(certificate: Path, key: Path) -> Identity:
    """Read a certificate and its private key, and check that neither file changes during the read.

    Raises:
        SettingsError: a file cannot be read, is not PEM or changes during the read, the key does not match the certificate, or the key is
            protected by a password.
    """
    identity = Identity(_read(certificate, "tls_certificate"), _read(key, "tls_key"))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")  # without it, OpenSSL would prompt for one
    except OSError as error:  # ssl.SSLError is one
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"tls_key {key}: not the key of the certificate in {certificate}: use its private key") from error
        if b"-----BEGIN CERTIFICATE-----" not in identity.certificate:
            raise SettingsError(
                f"tls_certificate {certificate}: no certificate found: expected PEM, which begins with -----BEGIN"
            ) from error
        if b"ENCRYPTED" in identity.key:
            raise SettingsError(
                f"tls_key {key}: protected by a password: use a key without one (openssl pkey -in {key} -out plain.key)"
            ) from error
        which, path = ("tls_key", key) if b"PRIVATE KEY-----" not in identity.key else ("tls_certificate", certificate)
        raise SettingsError(f"{which} {path}: not valid PEM: expected a complete certificate and its private key") from error
    if (_read(certificate, "tls_certificate"), _read(key, "tls_key")) != (identity.certificate, identity.key):
        raise SettingsError(f"tls_certificate {certificate}: changed while it was read: retry")
    return identity


def read_authorities(path: Path, setting: str) -> bytes:
    """Read the certificates of certificate authorities.

    Args:
        path: PEM file.
        setting: name of the setting in error messages.

    Raises:
        SettingsError: the file cannot be read or holds no certificate.
    """
    data = _read(path, setting)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=as_text(data))
    except (ssl.SSLError, ValueError) as error:  # ValueError: the file is empty
        raise SettingsError(
            f"{setting} {path}: no certificate found: expected PEM, which begins with -----BEGIN CERTIFICATE-----"
        ) from error
    return data


def as_text(pem: bytes) -> str:
    """Decode PEM data for Python's `ssl` module. Non-ASCII characters, which may occur in comments, are dropped."""
    return pem.decode("ascii", errors="ignore")


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting} {path}: {error.strerror or error}: expected a readable PEM file") from error
