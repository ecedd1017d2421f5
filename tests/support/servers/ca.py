"""A certificate authority of the test: certificates for servers and for clients, valid for a day."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_HOUR = datetime.timedelta(hours=1)


class KeyPair(NamedTuple):
    """Paths of a certificate and of its private key, both PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Ca:
    """An authority; `cert` is the path of its own certificate, PEM."""

    cert: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(self, *names: str) -> KeyPair:
        """A certificate for a server with these host names and addresses."""
        return self._issue(names, ExtendedKeyUsageOID.SERVER_AUTH, "server")

    def issue_client(self, name: str) -> KeyPair:
        """A certificate with which a client says who it is."""
        return self._issue((name,), ExtendedKeyUsageOID.CLIENT_AUTH, "client")

    def _issue(self, names: tuple[str, ...], usage: x509.ObjectIdentifier, kind: str) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self.key.public_key()
        certificate = (
            _builder(names[0], self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_usage(digital_signature=True), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), False)
            .sign(self.key, hashes.SHA256())
        )
        stem = f"{kind}-{names[0]}".replace(":", "_")
        pair = KeyPair(self.cert.with_name(f"{stem}.pem"), self.cert.with_name(f"{stem}.key"))
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair


def make_ca(folder: Path) -> Ca:
    """Makes an authority; all its files go into the folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {folder.name}")])
    certificate = (
        _builder(f"CA of {folder.name}", subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "ca.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Ca(path, certificate, key)


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _HOUR,
        not_valid_after=now + 24 * _HOUR,
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
