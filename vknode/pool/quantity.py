"""Kubernetes quantities as exact integers."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

_QUANTITY = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|)|[eE]([+-]?\d{1,2}))"
)
_SUFFIX = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{suffix: Fraction(1000**i) for i, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024**i) for i, suffix in enumerate("KMGTPE", 1)},
}


def _parse(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity (as 500m, 2, 64Mi)")
    number, suffix, exponent = match.groups()
    if exponent is not None:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * _SUFFIX[suffix]


# The same few amounts are read again and again, several times for each start.
@functools.lru_cache(maxsize=4096)
def value(text: str) -> int:
    """In whole units, rounded up as Kubernetes does. Raises ValueError."""
    return -int(-_parse(text) // 1)


@functools.lru_cache(maxsize=4096)
def milli(text: str) -> int:
    """In thousandths, rounded up. Raises ValueError."""
    return -int(-_parse(text) * 1000 // 1)


def is_amount(text: str) -> bool:
    """Whether this is a quantity of something there can be: not negative."""
    try:
        return _parse(text) >= 0
    except ValueError:
        return False
