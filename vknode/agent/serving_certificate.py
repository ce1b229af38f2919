"""The kubelet API's certificate as the cluster issues it: what is asked for, what is taken, when it
is due. Pure: no loop, no API server.

Facts (Kubernetes 1.37): the signer `kubernetes.io/kubelet-serving` signs a subject
`system:node:NAME` in the one organization `system:nodes`, with at least one DNS name or IP address,
for digital signatures and server authentication (pkg/apis/certificates/helpers.go); key
encipherment is for RSA only. A kubelet asks for the addresses of its Node and renews at 70 to 90 %
of the certificate's life, at random (client-go util/certificate).

One certificate serves all nodes of an agent: they are one process at one address, and that address
is what an API server verifies. It is asked for in the name of one of them, whose Node object has
the address, so that whoever approves by looking at the Node finds what it looks for. A certificate
a node (each has a port of its own) would keep thousands of keys in the same memory, so that nobody
gains by it, and would want thousands of approvals.

No key is in a repr, a log or an exception.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SIGNER = "kubernetes.io/kubelet-serving"
USAGES = ("digital signature", "server auth")
USER_PREFIX = "system:node:"
GROUP = "system:nodes"
# X.520 allows so many characters in a common name, and so does our library.
LONGEST_COMMON_NAME = 64
LONGEST_NODE_NAME = LONGEST_COMMON_NAME - len(USER_PREFIX)
# Of a certificate's life; in between at random.
RENEW_BETWEEN = (0.7, 0.9)
SELF_SIGNED_DAYS = 365


class UnusableCertificateError(Exception):
    """What was issued or stored is not what was asked for; the text says why."""


@dataclass(frozen=True, slots=True)
class ServingPair:
    """A certificate (with its chain) and its key, in PEM; times in seconds since the Unix epoch."""

    certificate: bytes
    key: bytes = field(repr=False)
    not_before: float
    not_after: float

    @property
    def pem(self) -> bytes:
        """Both, as one file."""
        return self.key.rstrip() + b"\n" + self.certificate

    def renew_at(self, share: float) -> float:
        """`share` is in `RENEW_BETWEEN`."""
        return self.not_before + share * (self.not_after - self.not_before)


@dataclass(frozen=True, slots=True)
class CertificateWish:
    """A new key and the request for its certificate, in PEM."""

    key: bytes = field(repr=False)
    request: bytes


def make_wish(node: str, address: str) -> CertificateWish:
    """For the Node of that name at that IP address. `node` has at most `LONGEST_NODE_NAME`
    characters (ValueError)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, GROUP),
            x509.NameAttribute(NameOID.COMMON_NAME, USER_PREFIX + node),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(_names(address, node), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateWish(_key_pem(key), request.public_bytes(serialization.Encoding.PEM))


def take(certificate: bytes, key: bytes, address: str, now: float) -> ServingPair:
    """Checks that the certificate is of this key, for this address, for servers, and good now.

    Raises `UnusableCertificateError`.
    """
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise UnusableCertificateError(
            f"it is no certificate or key in PEM ({type(error).__name__})"
        ) from None
    leaf = chain[0]
    if _spki(leaf.public_key()) != _spki(private.public_key()):
        raise UnusableCertificateError("it is of another key")
    if ipaddress.ip_address(address) not in _addresses(leaf):
        names = ", ".join(map(str, _addresses(leaf))) or "none"
        raise UnusableCertificateError(
            f"it is not for the address {address} (its addresses: {names})"
        )
    purposes = _purposes(leaf)
    if purposes is not None and ExtendedKeyUsageOID.SERVER_AUTH not in purposes:
        raise UnusableCertificateError("it is not for servers")
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if not begins <= now < ends:
        raise UnusableCertificateError(
            f"it is good from {_told(begins)} to {_told(ends)}, and it is {_told(now)}"
        )
    return ServingPair(certificate, key, begins, ends)


def split(pem: bytes) -> tuple[bytes, bytes]:
    """Certificate and key of `ServingPair.pem`. What is missing is empty."""
    key_ends = pem.find(b"-----BEGIN CERTIFICATE-----")
    return (b"", pem) if key_ends < 0 else (pem[key_ends:], pem[:key_ends])


def self_signed(addresses: Sequence[str], now: datetime) -> ServingPair:
    """A certificate that nobody can verify: for development only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vknode-agent")])
    now = now.replace(microsecond=0)  # certificates know whole seconds
    begins, ends = now - timedelta(hours=1), now + timedelta(days=SELF_SIGNED_DAYS)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_names(*addresses), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return ServingPair(pem, _key_pem(key), begins.timestamp(), ends.timestamp())


def _names(*names: str) -> x509.SubjectAlternativeName:
    """IP addresses as such, all else as DNS names."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def _addresses(leaf: x509.Certificate) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    found = extension.value.get_values_for_type(x509.IPAddress)
    return [one for one in found if isinstance(one, ipaddress.IPv4Address | ipaddress.IPv6Address)]


def _purposes(leaf: x509.Certificate) -> list[x509.ObjectIdentifier] | None:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        return None


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _told(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
