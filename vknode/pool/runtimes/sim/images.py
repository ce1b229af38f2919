"""Images of the simulation: every well-formed name exists in the registry."""

from __future__ import annotations

import hashlib
import re

from vknode.pool.runtimes.base import Failure

# Whatever this registry is asked for, the pull fails.
BROKEN_REGISTRY = "broken.sim.vknode.dev"

_NAME = re.compile(
    r"(?P<name>(?:[a-zA-Z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def normalise(reference: str) -> str:
    """With registry, repository and tag filled in as Docker's rules say.
    Raises Failure("InvalidImageName")."""
    match = _NAME.fullmatch(reference)
    if match is None:
        raise Failure(
            "InvalidImageName",
            f'Failed to apply default image tag "{reference}": couldn\'t parse image name',
            retryable=False,
        )
    name = match["name"]
    registry, slash, rest = name.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    elif not rest:
        name = f"docker.io/library/{registry}"
    if match["digest"]:
        return f"{name}@{match['digest']}"
    return f"{name}:{match['tag'] or 'latest'}"


def image_id(reference: str) -> str:
    """A digest reference that is the same for the same normalised name."""
    name, at, _ = reference.partition("@")
    if at:
        return reference
    name = name.rpartition(":")[0]
    return f"{name}@sha256:{hashlib.sha256(reference.encode()).hexdigest()}"
