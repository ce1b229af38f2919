"""ConfigMaps and Secrets that said `immutable: true`, as the Pods that use them know them. Pure.

Theory of operation. What can never change is not watched, so a Pod does not learn that it was
deleted, and needs not: a kubelet goes on with its copy, also for a container's next start, until
no Pod of its node uses it (pkg/kubelet/util/manager/watch_based_manager.go, 1.37). So one copy is
kept for all Pods that were given it, as long as one of them lives; a Pod that never was given it
gets nothing from here. As on a kubelet that was restarted, a new agent knows nothing of what was
deleted before. An object that is there again under the same name counts as it is then.

Copies are bytes, at most `MAX_BYTES` together; what is more is not kept. They are in no log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from vknode.agent.reference_index import RefKey
from vknode.translate.facts import Missing

MAX_BYTES = 64 * 1024 * 1024

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class _Copy:
    raw: bytes = field(repr=False)
    users: set[str] = field(default_factory=set)


class Immutables:
    """By object and by Pod (UID)."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._copies: dict[RefKey, _Copy] = {}
        self._by_pod: dict[str, set[RefKey]] = {}

    def __len__(self) -> int:
        return len(self._copies)

    def settle(
        self, uid: str, key: RefKey, found: dict[str, Any] | Missing
    ) -> dict[str, Any] | Missing:
        """What counts for the Pod where this was found."""
        copy = self._copies.get(key)
        if isinstance(found, Missing):
            if found.not_found and copy is not None and uid in copy.users:
                return _decode(copy.raw)
            return found
        if found.get("immutable") is not True:
            if copy is not None:
                self._drop(key)  # another object of that name
            return found
        raw = msgspec.json.encode(found)
        more = len(raw) - (0 if copy is None else len(copy.raw))
        if self._bytes + more > self._max_bytes:
            return found
        self._bytes += more
        if copy is None:
            copy = self._copies[key] = _Copy(raw)
        copy.raw = raw
        copy.users.add(uid)
        self._by_pod.setdefault(uid, set()).add(key)
        return found

    def forget(self, uid: str) -> None:
        """The Pod has ended."""
        for key in self._by_pod.pop(uid, ()):
            users = self._copies[key].users
            users.discard(uid)
            if not users:
                self._drop(key)

    def _drop(self, key: RefKey) -> None:
        copy = self._copies.pop(key)
        self._bytes -= len(copy.raw)
        for uid in copy.users:
            if uid in self._by_pod:
                self._by_pod[uid].discard(key)
