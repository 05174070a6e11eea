"""Authorities and certificates for tests."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Made:
    """A certificate and its key; an authority if it was made with `is_authority`."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def key_pem(self) -> bytes:
        return self.encrypted(serialization.NoEncryption())

    def encrypted(self, encryption: serialization.KeySerializationEncryption) -> bytes:
        return self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)

    def save(self, folder: Path, name: str) -> dict[str, Path]:
        """Write the files, and return them as settings of a server or a client."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate_pem)
        key.write_bytes(self.key_pem)
        return {"tls_certificate": certificate, "tls_key": key}


def make(name: str, authority: Made | None = None, host: str = "127.0.0.1", days: int = 1, is_authority: bool = False) -> Made:
    """Make a certificate, signed by `authority` or itself. days: days until it expires; negative if it has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    try:
        named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        named = x509.DNSName(host)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=9))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
    )
    return Made(builder.sign(key if authority is None else authority.key, hashes.SHA256()), key)
