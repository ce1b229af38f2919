"""The body of PATCH /status: the difference of two statuses as a strategic merge patch.

Strategic, because `conditions` has several writers: the server merges it by `type`, so a
patch that names only our changed conditions cannot drop one that somebody else has set
since. podIPs and hostIPs would be merged by `ip`: a directive replaces them, because the
first one is the primary. The lists of container statuses have no merge key and are
replaced whole (patchStrategy tags of PodStatus in k8s.io/api/core/v1). The UID in metadata
makes the server refuse a patch for another Pod of the same name: 422, metadata.uid, "field
is immutable" (seen with 1.37.2; not 409).
"""

from __future__ import annotations

from typing import Any

import msgspec

from vknode.translate.facts import Json

STATUS_PATCH_TYPE = "application/strategic-merge-patch+json"

# Merged by the server, but ours alone, and their order matters.
_REPLACED = ("podIPs", "hostIPs")
_encode = msgspec.json.Encoder(order="deterministic").encode


def status_patch(uid: str, old_status: Json | None, new_status: Json) -> bytes | None:
    """What turns `old_status` into `new_status`; None when they mean the same.

    null, an empty object or list and an absent key mean the same, as they do to the
    API server.
    """
    changes = _changes(old_status or {}, new_status)
    if not changes:
        return None
    return _encode({"metadata": {"uid": uid}, "status": changes})


def _changes(old: Json, new: Json) -> Json:
    changes: Json = {}
    for name in new.keys() | old.keys():
        before, after = old.get(name), new.get(name)
        if before == after or _meaning(before) == _meaning(after):
            continue
        if _meaning(after) is None:
            changes[name] = None
        elif name == "conditions":
            entries = _conditions(before or [], after or [])
            if entries:  # else only their order differs
                changes[name] = entries
        elif name in _REPLACED:
            changes[name] = [{"$patch": "replace"}, *(after or [])]
        elif isinstance(before, dict) and isinstance(after, dict):
            changes[name] = _object(before, after)
        else:
            changes[name] = after
    return changes


def _meaning(value: Any) -> Any:
    """The value without what says nothing, so that two spellings compare as equal."""
    if isinstance(value, dict):
        kept = {
            name: inner
            for name, inner in ((name, _meaning(one)) for name, one in value.items())
            if inner is not None
        }
        return kept or None
    if isinstance(value, list):
        return [_meaning(one) for one in value] or None
    return value


def _object(old: Json, new: Json) -> Json:
    """A patch for an object: changed keys, and null for those that are gone."""
    changes: Json = {name: None for name in old if name not in new}
    for name, after in new.items():
        before = old.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            changes[name] = _object(before, after)
        else:
            changes[name] = after
    return changes


def _conditions(old: list[Json], new: list[Json]) -> list[Json]:
    by_type = {entry["type"]: entry for entry in old}
    entries: list[Json] = []
    for entry in new:
        before = by_type.pop(entry["type"], None)
        if before is None:
            entries.append(entry)
        elif _meaning(before) != _meaning(entry):
            entries.append({**_object(before, entry), "type": entry["type"]})
    entries.extend({"$patch": "delete", "type": gone} for gone in by_type)
    return entries
