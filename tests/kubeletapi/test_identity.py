"""Whom certificates and headers name; what is nobody's."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from vknode.devcluster.pki import Authority, new_key
from vknode.kubeletapi.identity import (
    TOKEN_PROTOCOL,
    BadCredentialsError,
    User,
    authenticated,
    bearer_token,
    protocol_token,
    user_of_certificate,
    without_tokens,
)

Subject = tuple[tuple[x509.ObjectIdentifier, str], ...]

NOW = datetime.now(UTC)
UID = x509.ObjectIdentifier("1.3.6.1.4.1.57683.2")
TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


def certificate(*subject: tuple[x509.ObjectIdentifier, str]) -> bytes:
    """Self-signed: who trusts it is no question here."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.DER)


def test_the_common_name_is_the_user_and_organizations_are_groups() -> None:
    der = certificate(
        (NameOID.ORGANIZATION_NAME, "system:nodes"),
        (NameOID.ORGANIZATION_NAME, "ops"),
        (NameOID.COMMON_NAME, "system:node:az1-a"),
        (UID, "u-7"),
    )
    user = user_of_certificate(der, NOW)
    assert (user.name, user.uid) == ("system:node:az1-a", "u-7")
    assert user.groups == ("system:nodes", "ops")
    ((key, (value,)),) = user.extra
    assert key == "authentication.kubernetes.io/credential-id"
    assert value.startswith("X509SHA256=") and len(value) == len("X509SHA256=") + 64


@pytest.mark.parametrize(
    "subject",
    [
        (),
        ((NameOID.ORGANIZATION_NAME, "system:masters"),),
        ((NameOID.COMMON_NAME, "jane"), (NameOID.COMMON_NAME, "admin")),
        ((NameOID.COMMON_NAME, "jane"), (UID, "1"), (UID, "2")),
    ],
)
def test_a_subject_that_names_nobody(
    subject: Subject,
) -> None:
    with pytest.raises(BadCredentialsError):
        user_of_certificate(certificate(*subject), NOW)


def test_a_certificate_is_good_for_its_time_only() -> None:
    """Also on a connection that began within it."""
    der = certificate((NameOID.COMMON_NAME, "jane"))
    assert user_of_certificate(der, NOW).name == "jane"
    for hours in (-2, 2):
        with pytest.raises(BadCredentialsError, match="not valid at this time"):
            user_of_certificate(der, NOW + timedelta(hours=hours))


@given(st.binary(max_size=400))
def test_no_bytes_are_a_user_by_accident(der: bytes) -> None:
    with pytest.raises(BadCredentialsError):
        user_of_certificate(der, NOW)


def test_a_damaged_certificate(tmp_path: Path) -> None:
    pem = Authority(tmp_path).issue("jane", "jane").cert.read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    with pytest.raises(BadCredentialsError):
        user_of_certificate(der[:-40], NOW)


def test_everybody_known_is_of_a_group() -> None:
    assert authenticated(User("jane", groups=("ops",))).groups == ("ops", "system:authenticated")
    for groups in (("system:authenticated",), ("system:unauthenticated", "x")):
        assert authenticated(User("jane", groups=groups)).groups == groups
    assert authenticated(User("system:anonymous")).groups == ()


@given(TOKENS, st.sampled_from(["Bearer", "bearer", "BEARER"]))
def test_a_bearer_token(token: str, scheme: str) -> None:
    assert bearer_token(f"{scheme} {token}") == token
    assert bearer_token(f"  {scheme} {token}  ") == token
    assert bearer_token(f"{scheme} {token} more") == token


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer  x", "Basic abc", "x", " "])
def test_no_bearer_token(header: str) -> None:
    assert bearer_token(header) is None


def encoded(token: str) -> str:
    return TOKEN_PROTOCOL + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@given(TOKENS)
def test_a_token_among_websocket_protocols(token: str) -> None:
    offered = ["v5.channel.k8s.io", encoded(token)]
    assert protocol_token(offered) == token
    assert without_tokens(offered) == ["v5.channel.k8s.io"]


@pytest.mark.parametrize(
    "offered",
    [
        [encoded("a")],
        ["v5.channel.k8s.io", encoded("a"), encoded("b")],
        ["v5.channel.k8s.io", f"{TOKEN_PROTOCOL}YQ=="],
        ["v5.channel.k8s.io", f"{TOKEN_PROTOCOL}secret!"],
        ["v5.channel.k8s.io", f"{TOKEN_PROTOCOL}_w"],
    ],
)
def test_a_token_among_websocket_protocols_that_is_none(offered: list[str]) -> None:
    with pytest.raises(BadCredentialsError) as caught:
        protocol_token(offered)
    for one in offered[1:]:
        assert one.removeprefix(TOKEN_PROTOCOL) not in str(caught.value)


def test_websocket_protocols_without_a_token() -> None:
    assert protocol_token(["v5.channel.k8s.io"]) is None
    assert protocol_token([]) is None
