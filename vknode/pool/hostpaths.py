"""Which paths of a host lie below which prefixes. Pure, for the agent and for pools."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable


def host_path_allowed(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a host path is one of the prefixes or below; ".." never is. Says nothing of
    links: whoever mounts the path resolves them first and asks again."""
    if not path.startswith("/") or ".." in path.split("/"):
        return False
    clean = _normal(path)
    return any(
        clean == prefix or clean.startswith(prefix.rstrip("/") + "/")
        for prefix in map(_normal, prefixes)
    )


def _normal(path: str) -> str:
    # POSIX lets "//x" stand for something else, and normpath keeps it; Linux does not.
    return posixpath.normpath("/" + path.lstrip("/"))
