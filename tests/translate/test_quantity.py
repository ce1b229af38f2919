"""Quantities: the texts that the API server reads and writes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.translate.quantity import Format, Quantity


# From k8s.io/apimachinery/pkg/api/resource: canonical forms.
@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0", "0"),
        ("0Mi", "0"),
        ("100m", "100m"),
        ("0.1", "100m"),
        ("1000m", "1"),
        ("1.5", "1500m"),
        ("1500", "1500"),
        ("12000", "12k"),
        ("1Ki", "1Ki"),
        ("1024Ki", "1Mi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1023Ki", "1023Ki"),
        ("1.1Ki", "1126400m"),
        ("1e3", "1e3"),
        ("1E3", "1e3"),
        ("1500e-3", "1500e-3"),
        ("1E", "1E"),
        ("+2", "2"),
        ("-1Gi", "-1Gi"),
        ("-100m", "-100m"),
        (".5", "500m"),
        ("5.", "5"),
        ("3n", "3n"),
        ("0.1n", "1n"),
        ("-0.1n", "-1n"),
        ("100Ei", str(2**63 - 1)),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(Quantity.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "Mi", "1ki", "1.2.3", "1e", "--1", "1mm", "0x1", "\N{ARABIC-INDIC DIGIT ONE}"],
)
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a Kubernetes quantity"):
        Quantity.parse(text)


def test_whole_values_round_away_from_zero() -> None:
    assert Quantity.parse("1500m").value() == 2
    assert Quantity.parse("-1500m").value() == -2
    assert Quantity.parse("1100u").milli_value() == 2
    assert Quantity.parse("2").milli_value() == 2000


def test_a_sum_keeps_the_left_notation_unless_that_is_zero() -> None:
    assert str(Quantity.parse("1Gi") + Quantity.parse("1024k")) == "1049576Ki"
    assert str(Quantity.parse("0") + Quantity.parse("1Gi")) == "1Gi"
    assert str(Quantity.parse("1") - Quantity.parse("250m")) == "750m"


_FORMATS = st.sampled_from(list(Format))
_QUANTITIES = st.builds(Quantity, st.integers(-(10**27), 10**27), _FORMATS)


@given(_QUANTITIES)
def test_a_written_quantity_is_read_back_exactly(quantity: Quantity) -> None:
    text = str(quantity)
    assert Quantity.parse(text).nano == quantity.nano
    assert str(Quantity.parse(text)) == text


@given(st.integers(-(10**12), 10**12), st.sampled_from(["n", "u", "m", "", "k", "Ki", "M", "Mi"]))
def test_suffixes_are_exact(number: int, suffix: str) -> None:
    factor = {
        "n": Fraction(1, 10**9),
        "u": Fraction(1, 10**6),
        "m": Fraction(1, 1000),
        "": Fraction(1),
        "k": Fraction(1000),
        "Ki": Fraction(1024),
        "M": Fraction(10**6),
        "Mi": Fraction(2**20),
    }[suffix]
    exact = number * factor
    assert Quantity.parse(f"{number}{suffix}").nano == exact * 10**9


@given(_QUANTITIES, _QUANTITIES)
def test_order_and_sums_are_those_of_numbers(left: Quantity, right: Quantity) -> None:
    assert (left < right) == (left.nano < right.nano)
    bound = (2**63 - 1) * 10**9
    assert (left + right).nano == max(-bound, min(bound, left.nano + right.nano))
    assert left - left == Quantity(0)
