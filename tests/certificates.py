"""Certificates of every kind, by an authority that lives as long as the tests: a good one, and those that must be refused."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
_DAY = timedelta(days=1)


class Authority:
    """Vouches for this machine. `ca_file` is what a client trusts it by."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.ca_file = str(folder / "authority.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)

    def server(self, host: str = HOST, begins: datetime | None = None, ends: datetime | None = None) -> ssl.SSLContext:
        """A server with a certificate of ours, good unless told otherwise."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(host, not_before=begins, not_after=ends).configure_cert(context)
        return context

    def client(self, name: str = "robot.example") -> tuple[Path, Path]:
        """A certificate to show to a server that wants one, and its key, in files."""
        made = self._authority.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"
        made.private_key_pem.write_to_path(str(key))
        for number, each in enumerate(made.cert_chain_pems):
            each.write_to_path(str(certificate), append=number > 0)
        return certificate, key

    def expired(self) -> ssl.SSLContext:
        now = datetime.now(UTC)
        return self.server(begins=now - 9 * _DAY, ends=now - _DAY)

    def not_yet_valid(self) -> ssl.SSLContext:
        now = datetime.now(UTC)
        return self.server(begins=now + _DAY, ends=now + 9 * _DAY)

    def another_host(self) -> ssl.SSLContext:
        return self.server("other.example")

    def another_authority(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert(HOST).configure_cert(context)
        return context

    def self_signed(self) -> ssl.SSLContext:
        """For the right host, and nobody vouches for it but itself."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - _DAY, now + _DAY)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        path = self._folder / "self-signed.pem"
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def old_protocols(self) -> ssl.SSLContext:
        """Speaks TLS 1.0 and 1.1, and nothing newer."""
        context = self.server()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        return context

    def wants_a_certificate(self, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
        """Lets nobody in who has none."""
        context = self.server()
        context.maximum_version = newest
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca_file)
        return context

    @property
    def refused(self) -> Mapping[str, Callable[[], ssl.SSLContext]]:
        """Every server that must be refused, or refuses us, by what is wrong with it."""
        return {
            "expired": self.expired,
            "not yet valid": self.not_yet_valid,
            "another host": self.another_host,
            "another authority": self.another_authority,
            "self-signed": self.self_signed,
            "old protocols": self.old_protocols,
            "wants a certificate": self.wants_a_certificate,
            "wants a certificate, TLS 1.2": lambda: self.wants_a_certificate(ssl.TLSVersion.TLSv1_2),
        }
