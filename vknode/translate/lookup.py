"""Reading what was looked up, with a kubelet's words where something is missing."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Literal

from vknode.translate.facts import Json, Missing, Resolved

Kind = Literal["configmap", "secret"]


class MissingReference(Exception):
    """A required reference cannot be resolved; the text is a kubelet's."""


def find(resolved: Resolved, kind: Kind, name: str, *, optional: bool) -> Json | None:
    """The object, or None where it does not exist and need not.

    Raises MissingReference in a kubelet's words, LookupError if nobody looked it up.
    """
    objects: Mapping[str, Json | Missing]
    objects = resolved.config_maps if kind == "configmap" else resolved.secrets
    if name not in objects:
        raise LookupError(f"{kind} {name!r} is needed but was not looked up")
    found = objects[name]
    if isinstance(found, Missing):
        if not found.not_found:
            raise MissingReference(found.message)
        if optional:
            return None
        # The kubelet's own wording, in the singular, unlike the API server's.
        raise MissingReference(f'{kind} "{name}" not found')
    return found


def config_map_bytes(obj: Json) -> dict[str, bytes]:
    """Text and binary entries; a text entry wins (the API server allows no doubles)."""
    content = {key: decode(value) for key, value in (obj.get("binaryData") or {}).items()}
    content.update((key, value.encode()) for key, value in (obj.get("data") or {}).items())
    return content


def secret_bytes(obj: Json) -> dict[str, bytes]:
    return {key: decode(value) for key, value in (obj.get("data") or {}).items()}


def decode(text: str) -> bytes:
    """Base64 as the API server writes it. The error never shows the content."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("an entry is not valid base64") from None
