"""Kubernetes quantities ("500m", "1.5Gi", "1e3"), exact.

A quantity is a whole number of nano units and the notation it was written in; the
canonical text is what the API server would store (k8s.io/apimachinery, resource.Quantity):
the largest suffix without a fraction, binary only from 1024 on and only for whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import total_ordering

_NANO = 10**9
# Larger numbers are capped, as the API machinery does.
_MAX = (2**63 - 1) * _NANO

_PATTERN = re.compile(
    r"([+-]?)(\d+\.?\d*|\.\d+)(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?\d+))", re.ASCII
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL_SUFFIX = {power: suffix for suffix, power in _DECIMAL.items()}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
# An exponent beyond this only makes a number that is capped or rounded up to one nano.
_MAX_EXPONENT = 1000


class Format(Enum):
    DECIMAL_SI = "DecimalSI"
    BINARY_SI = "BinarySI"
    DECIMAL_EXPONENT = "DecimalExponent"


@total_ordering
class Quantity:
    """An exact amount; immutable. `nano` is the amount in 1e-9 units."""

    __slots__ = ("format", "nano")

    def __init__(self, nano: int, format: Format = Format.DECIMAL_SI) -> None:
        self.nano = max(-_MAX, min(_MAX, nano))
        self.format = format

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """Raises ValueError with the text where it is no quantity."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a Kubernetes quantity (such as 500m, 2 or 1.5Gi)")
        sign, number, binary, decimal, exponent = match.groups()
        whole, _, fraction = number.partition(".")
        digits = int((whole + fraction) or "0")
        numerator, denominator = digits * _NANO, 10 ** len(fraction)
        if binary:
            format = Format.BINARY_SI
            numerator <<= 10 * _BINARY.index(binary)
        else:
            format = Format.DECIMAL_SI if exponent is None else Format.DECIMAL_EXPONENT
            power = _DECIMAL[decimal] if exponent is None else int(exponent)
            power = max(-_MAX_EXPONENT, min(_MAX_EXPONENT, power))
            if power >= 0:
                numerator *= 10**power
            else:
                denominator *= 10**-power
        nano = -(-numerator // denominator)  # up: a request is never rounded to less
        return cls(-nano if sign == "-" else nano, format)

    def __str__(self) -> str:
        nano = self.nano
        if nano == 0:
            return "0"
        if self.format is Format.BINARY_SI and abs(nano) >= 1024 * _NANO and nano % _NANO == 0:
            value, step = nano // _NANO, 0
            while value % 1024 == 0 and step < len(_BINARY) - 1:
                value //= 1024
                step += 1
            return f"{value}{_BINARY[step]}"
        power = -9
        while nano % 1000 == 0 and power < 18:
            nano //= 1000
            power += 3
        if self.format is Format.DECIMAL_EXPONENT:
            return f"{nano}e{power}" if power else str(nano)
        return f"{nano}{_DECIMAL_SUFFIX[power]}"

    def __repr__(self) -> str:
        return f"Quantity({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.nano == other.nano

    def __lt__(self, other: Quantity) -> bool:
        return self.nano < other.nano

    def __hash__(self) -> int:
        return hash(self.nano)

    def __bool__(self) -> bool:
        return self.nano != 0

    def __add__(self, other: Quantity) -> Quantity:
        """The sum keeps the left side's notation, unless that is zero."""
        return Quantity(self.nano + other.nano, self.format if self.nano else other.format)

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.nano - other.nano, self.format if self.nano else other.format)

    def value(self) -> int:
        """Whole units, rounded away from zero."""
        return _round_away(self.nano, _NANO)

    def milli_value(self) -> int:
        """Thousandths, rounded away from zero."""
        return _round_away(self.nano, _NANO // 1000)


def _round_away(number: int, by: int) -> int:
    return -(-number // by) if number >= 0 else number // by


ZERO = Quantity(0)


def parse_list(resources: Mapping[str, str] | None) -> dict[str, Quantity]:
    """A ResourceList with exact amounts."""
    return {name: Quantity.parse(str(text)) for name, text in (resources or {}).items()}


def add_lists(lists: Iterable[Mapping[str, Quantity]]) -> dict[str, Quantity]:
    """The sum, resource by resource."""
    total: dict[str, Quantity] = {}
    for one in lists:
        for name, amount in one.items():
            total[name] = total[name] + amount if name in total else amount
    return total


def max_lists(left: Mapping[str, Quantity], right: Mapping[str, Quantity]) -> dict[str, Quantity]:
    """The larger amount, resource by resource."""
    result = dict(left)
    for name, amount in right.items():
        if name not in result or amount > result[name]:
            result[name] = amount
    return result


def format_list(resources: Mapping[str, Quantity]) -> dict[str, str]:
    return {name: str(amount) for name, amount in sorted(resources.items())}
