"""A certificate authority for tests, which can also issue what nobody should take."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vknode.pool.endpoint import TlsFiles

HOUR = datetime.timedelta(hours=1)
_USAGES = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}


class Authority:
    """A CA whose certificates are for 127.0.0.1. Files are replaced at once, as renewals are."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _named(name)
        self.pem = self._sign(self._subject, self._key.public_key(), ca=True)
        self.ca = folder / f"{name}-ca.pem"
        replace(self.ca, self.pem)

    def issue(
        self,
        name: str,
        *,
        dns: str = "",
        usage: str = "",
        begins: datetime.timedelta = -HOUR,
        ends: datetime.timedelta = HOUR,
        into: TlsFiles | None = None,
    ) -> TlsFiles:
        """A certificate and its key, for the name `dns` or 127.0.0.1; `begins` and `ends` count
        from now, `usage` is "client", "server" or both. `into` files that are there already."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(
            _named(name), key.public_key(), dns=dns, usage=usage, begins=begins, ends=ends
        )
        files = into or TlsFiles(
            self._folder / f"{name}.pem", self._folder / f"{name}.key", self.ca
        )
        replace(
            files.key,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        replace(files.cert, cert)
        return files

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        ca: bool = False,
        dns: str = "",
        usage: str = "",
        begins: datetime.timedelta = -HOUR,
        ends: datetime.timedelta = HOUR,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        if dns:
            name = x509.DNSName(dns)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([_USAGES[usage]]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def replace(file: Path, content: bytes) -> None:
    """All at once, and as another file: how Secrets and cert-manager renew."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(content)
    fresh.replace(file)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
