"""What the agent asks a cluster to sign for its kubelet API, and what it takes as an answer."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.serving_certificate import (
    LONGEST_NODE_NAME,
    RENEW_BETWEEN,
    ServingPair,
    UnusableCertificateError,
    make_wish,
    self_signed,
    split,
    take,
)
from vknode.devcluster.pki import Authority

NOW = datetime.now(UTC).timestamp()
DAY = 86_400.0
HOUR = timedelta(hours=1)


@pytest.mark.parametrize("address", ["10.0.0.5", "fd00::5"])
def test_the_request_is_what_the_signer_demands(address: str) -> None:
    wish = make_wish("az1-a", address)
    request = x509.load_pem_x509_csr(wish.request)
    assert request.is_signature_valid
    organizations = request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert [one.value for one in organizations] == ["system:nodes"]
    (name,) = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "system:node:az1-a"
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(address)]
    assert names.get_values_for_type(x509.DNSName) == ["az1-a"]
    assert len(list(names)) == 2


def test_each_request_has_a_key_of_its_own_that_nothing_shows() -> None:
    one, other = make_wish("az1-a", "10.0.0.5"), make_wish("az1-a", "10.0.0.5")
    assert one.key != other.key
    assert "PRIVATE" in one.key.decode()
    assert "PRIVATE" not in repr(one)
    assert "PRIVATE" not in repr(self_signed(["10.0.0.5"], datetime.now(UTC)))


def test_the_longest_name_of_a_node() -> None:
    make_wish("n" * LONGEST_NODE_NAME, "10.0.0.5")
    with pytest.raises(ValueError):
        make_wish("n" * (LONGEST_NODE_NAME + 1), "10.0.0.5")


def test_a_certificate_that_fits(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a", "system:node:az1-a", ips=["10.0.0.5", "10.0.0.6"])
    taken = take(pair.cert.read_bytes() + authority.pem, pair.key.read_bytes(), "10.0.0.5", NOW)
    assert taken.not_before < NOW < taken.not_after
    assert split(taken.pem) == (taken.certificate, taken.key.rstrip() + b"\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ips": ["10.0.0.6"]}, r"not for the address 10\.0\.0\.5 \(its addresses: 10\.0\.0\.6\)"),
        ({"dns": ["10.0.0.5"]}, "its addresses: none"),
        ({}, "not for the address"),
        ({"ips": ["10.0.0.5"], "valid": (-2 * HOUR, -HOUR)}, "it is good from"),
        ({"ips": ["10.0.0.5"], "valid": (HOUR, 2 * HOUR)}, "it is good from"),
    ],
)
def test_a_certificate_that_does_not_fit(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    pair = Authority(tmp_path).issue("a", "system:node:az1-a", **options)  # type: ignore[arg-type]  # of the case above
    with pytest.raises(UnusableCertificateError, match=words):
        take(pair.cert.read_bytes(), pair.key.read_bytes(), "10.0.0.5", NOW)


def test_a_certificate_of_another_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = (authority.issue(name, "a", ips=["10.0.0.5"]) for name in ("one", "other"))
    with pytest.raises(UnusableCertificateError, match="of another key"):
        take(one.cert.read_bytes(), other.key.read_bytes(), "10.0.0.5", NOW)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_nothing_else_is_a_certificate(certificate: bytes, key: bytes) -> None:
    with pytest.raises(UnusableCertificateError):
        take(certificate, key, "10.0.0.5", NOW)
    first, second = split(certificate + key)
    assert second + first == certificate + key


def test_a_self_signed_one_is_for_the_address() -> None:
    pair = self_signed(["10.0.0.5"], datetime.now(UTC))
    assert take(pair.certificate, pair.key, "10.0.0.5", NOW) == pair


@given(st.floats(0, 2e9), st.floats(DAY / 24, 400 * DAY), st.floats(*RENEW_BETWEEN), st.data())
def test_it_is_renewed_with_a_tenth_of_its_life_to_go(
    begins: float, life: float, share: float, data: st.DataObject
) -> None:
    pair = ServingPair(b"", b"", begins, begins + life)
    left = pair.not_after - pair.renew_at(share)
    assert life * 0.09 < left < life * 0.31
    other = data.draw(st.floats(*RENEW_BETWEEN))
    assert (pair.renew_at(other) > pair.renew_at(share)) <= (other > share)
