"""Patterns of names in the configuration: a name, or a prefix with "*" at its end. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

EVERY = "*"

_PREFIX = re.compile(r"[a-z0-9][-a-z0-9.]*")


def fits(name: str, pattern: str) -> bool:
    if pattern.endswith(EVERY):
        return name.startswith(pattern.removesuffix(EVERY))
    return name == pattern


def fits_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fits(name, pattern) for pattern in patterns)


def is_prefix_pattern(text: str) -> bool:
    """ "*", or a "*" after what a name of Kubernetes may begin with."""
    stem, star, rest = text.partition(EVERY)
    return bool(star) and not rest and (not stem or _PREFIX.fullmatch(stem) is not None)
