"""Which Pods use which ConfigMap or Secret, and who has not got its newest content. Pure.

Theory of operation. A Pod says with `use` what its sandbox was made from: of each object the
resourceVersion, or "" where it was missing. Whoever watches an object says with `observe` what
is there now. A use is stale when the content has changed since (a new resourceVersion with the
same content, such as another annotation, is no change), when what was missing has come, or when
what was there has gone. Staleness is a comparison of two resourceVersions, never of events, so
it does not matter which of the two is told first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vknode.kube.models import is_newer
from vknode.translate.facts import TrustNeed


class RefKey(NamedTuple):
    """One object; `resource` is `configmaps` or `secrets`."""

    resource: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource} {self.namespace}/{self.name}"

    @property
    def collection(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/{self.resource}"


@dataclass(frozen=True, slots=True)
class Uses:
    """What a spec was made from. `given`: objects whose changes matter, with the resourceVersion
    that was read, "" where they were missing. `for_restarts`: the same of those whose changes
    matter once a container is started again."""

    given: Mapping[RefKey, str] = field(default_factory=dict)
    for_restarts: Mapping[RefKey, str] = field(default_factory=dict)
    root_ca: bool = False
    trust: Sequence[TrustNeed] = ()
    certificates: bool = False


class _Use(NamedTuple):
    node: str
    version: str
    needed: bool


@dataclass(slots=True)
class _Entry:
    users: dict[str, _Use] = field(default_factory=dict)
    # Users that need it.
    needed: int = 0
    # Since when the content is as it is; "" until somebody has looked.
    changed_at: str = ""
    # Hash of the content; None: the object is not there.
    content: int | None = None


class ReferenceIndex:
    """By object and by Pod (UID)."""

    def __init__(self) -> None:
        self._entries: dict[RefKey, _Entry] = {}
        self._by_pod: dict[str, tuple[RefKey, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: RefKey) -> bool:
        return key in self._entries

    def use(
        self,
        uid: str,
        node: str,
        given: Mapping[RefKey, str],
        for_restarts: Mapping[RefKey, str] | None = None,
    ) -> bool:
        """A Pod's sandbox has this; replaces what it had. Returns whether that is stale."""
        self.drop(uid)
        everything = {**(for_restarts or {}), **given}
        if everything:
            self._by_pod[uid] = tuple(everything)
        stale = False
        for key, version in everything.items():
            entry = self._entries.setdefault(key, _Entry())
            use = entry.users[uid] = _Use(node, version, key in given)
            entry.needed += use.needed
            stale = stale or _is_stale(entry, use)
        return stale

    def drop(self, uid: str) -> tuple[RefKey, ...]:
        """The Pod uses nothing any more. Returns what it used."""
        keys = self._by_pod.pop(uid, ())
        for key in keys:
            entry = self._entries[key]
            use = entry.users.pop(uid, None)
            if use is not None:
                entry.needed -= use.needed
        return keys

    def observe(self, key: RefKey, version: str, content: int | None) -> list[str]:
        """The object is like that now (None: it is not there; version "": nobody knows since
        when). Returns the Pods that are stale."""
        entry = self._entries.get(key)
        if entry is None:
            return []
        if not version:
            entry.changed_at, entry.content = "", None
            return [uid for uid, use in entry.users.items() if use.version]
        if entry.changed_at and not is_newer(version, entry.changed_at):
            return []
        if entry.changed_at and entry.content == content:
            return []
        entry.changed_at, entry.content = version, content
        return [uid for uid, use in entry.users.items() if _is_stale(entry, use)]

    def is_used(self, key: RefKey) -> bool:
        entry = self._entries.get(key)
        return entry is not None and bool(entry.users)

    def is_needed(self, key: RefKey) -> bool:
        """Some user's containers see its changes while they run, or wait for one."""
        entry = self._entries.get(key)
        return entry is not None and entry.needed > 0

    def needs(self, uid: str, key: RefKey) -> bool:
        """That Pod's containers see its changes while they run, or wait for one."""
        entry = self._entries.get(key)
        use = entry.users.get(uid) if entry is not None else None
        return use is not None and use.needed

    def users(self, key: RefKey) -> list[str]:
        """UIDs of the Pods that use it."""
        entry = self._entries.get(key)
        return [] if entry is None else list(entry.users)

    def a_node(self, key: RefKey, turn: int) -> str | None:
        """A node that may read the object; another `turn` may give another one."""
        entry = self._entries.get(key)
        if entry is None or not entry.users:
            return None
        nodes = sorted({use.node for use in entry.users.values()})
        return nodes[turn % len(nodes)]

    def forget(self, key: RefKey) -> None:
        """Nobody uses it and nobody watches it."""
        entry = self._entries.get(key)
        if entry is not None and not entry.users:
            del self._entries[key]


def _is_stale(entry: _Entry, use: _Use) -> bool:
    if not entry.changed_at:
        return False
    if not use.version:
        return entry.content is not None
    return is_newer(entry.changed_at, use.version)
