"""Certificates and keys in PEM files, looked at before gRPC gets them: it says little of what is wrong with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import SettingsError


@dataclass(frozen=True, repr=False)
class Identity:
    """A certificate, with those between it and its authority, and its private key, both PEM. No `repr`: no log shows the key."""

    certificate: bytes
    key: bytes


def read_identity(certificate: Path, key: Path) -> Identity:
    """Read both, as they are at one moment.

    Raises:
        SettingsError: they cannot be read, are not PEM, do not belong together, or the key has a password.
    """
    read = Identity(_read(certificate, "tls_certificate"), _read(key, "tls_key"))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")  # an empty one, or it would ask for it
    except OSError as error:  # ssl.SSLError is one
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"tls_key {key}: not the key of the certificate in {certificate}") from error
        if b"-----BEGIN CERTIFICATE-----" not in read.certificate:
            raise SettingsError(f"tls_certificate {certificate}: no certificate in it: expected PEM, which begins -----BEGIN") from error
        if b"ENCRYPTED" in read.key:
            raise SettingsError(f"tls_key {key}: has a password: expected a key without (openssl pkey -in {key} -out plain.key)") from error
        which, path = ("tls_key", key) if b"PRIVATE KEY-----" not in read.key else ("tls_certificate", certificate)
        raise SettingsError(f"{which} {path}: cannot be read as PEM: expected a certificate and its private key, whole") from error
    if (_read(certificate, "tls_certificate"), _read(key, "tls_key")) != (read.certificate, read.key):
        raise SettingsError(f"tls_certificate {certificate}: written while it was read")
    return read


def read_authorities(path: Path, setting: str) -> bytes:
    """Certificates of authorities.

    Args:
        path: a PEM file.
        setting: that named it.

    Raises:
        SettingsError: it cannot be read, or holds no certificate.
    """
    data = _read(path, setting)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=as_text(data))
    except (ssl.SSLError, ValueError) as error:  # a ValueError where the file is empty
        raise SettingsError(f"{setting} {path}: no certificate in it: expected PEM, which begins -----BEGIN CERTIFICATE-----") from error
    return data


def as_text(pem: bytes) -> str:
    """For Python's `ssl`, which takes no letters beyond ASCII, such as in comments."""
    return pem.decode("ascii", errors="ignore")


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting} {path}: {error.strerror or error}") from error
