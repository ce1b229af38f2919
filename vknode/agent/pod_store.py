"""Every Pod the watch names, by UID, by node and by namespace/name. Pure: no loop, no clock.

Theory of operation. A Pod is kept as the bytes the API server sent, plus the few fields that
decisions need; whoever wants the rest decodes it (about 20 µs for a usual Pod). That makes a
Pod at rest cost little more than its JSON, and nobody can change a shared dict by accident.

Two sources bring newer states of a Pod: the watch, and the answers to our own writes. The
resourceVersion decides which is newer (since Kubernetes 1.35 it is defined to be comparable;
before, every API server over etcd wrote an integer). Where one is not an integer, the later
arrival wins.

How a Pod leaves:

=============  =========================================================================
`GONE`         a DELETED event, or another UID was seen under its name: it is certain
`VANISHED`     a list no longer names it. True, too, after an etcd was restored from an
               old backup, so nothing is deleted on this word alone (`orphans.py`)
=============  =========================================================================
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vknode.kube.models import ObjectKey, ObjectMeta, is_newer

_ENV_SOURCES = (b'"configMapKeyRef"', b'"secretKeyRef"', b'"configMapRef"', b'"secretRef"')
TERMINAL_PHASES = frozenset(("Succeeded", "Failed"))


class _SpecHead(msgspec.Struct, rename="camel"):
    node_name: str = ""
    termination_grace_period_seconds: int | None = None


class _ContainerHead(msgspec.Struct):
    container_id: str = msgspec.field(name="containerID", default="")


class _StatusHead(msgspec.Struct, rename="camel"):
    phase: str = ""
    init_container_statuses: list[_ContainerHead] | None = None
    container_statuses: list[_ContainerHead] | None = None


class _PodHead(msgspec.Struct):
    metadata: ObjectMeta
    spec: _SpecHead = msgspec.field(default_factory=_SpecHead)
    status: _StatusHead = msgspec.field(default_factory=_StatusHead)


_decode_head = msgspec.json.Decoder(_PodHead).decode
_decode_pod = msgspec.json.Decoder(dict[str, Any]).decode


class PodObject:
    """One state of one Pod. Immutable by convention; `decode()` gives a fresh dict."""

    __slots__ = ("_head", "fingerprint", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head = self._head = _decode_head(raw)
        meta = head.metadata
        # What a pool must learn of: the spec (whose changes raise the generation), and what
        # the downward API shows. Only ever compared within this process.
        self.fingerprint = hash(
            (
                meta.generation,
                frozenset((meta.labels or {}).items()),
                frozenset((meta.annotations or {}).items()),
            )
        )

    def decode(self) -> dict[str, Any]:
        return _decode_pod(self.raw)

    @property
    def metadata(self) -> ObjectMeta:
        return self._head.metadata

    @property
    def uid(self) -> str:
        return self._head.metadata.uid

    @property
    def namespace(self) -> str:
        return self._head.metadata.namespace

    @property
    def name(self) -> str:
        return self._head.metadata.name

    @property
    def path(self) -> str:
        """Where the API server has it."""
        meta = self._head.metadata
        return f"/api/v1/namespaces/{meta.namespace}/pods/{meta.name}"

    @property
    def node(self) -> str:
        return self._head.spec.node_name

    @property
    def deleting(self) -> bool:
        return self._head.metadata.deletion_timestamp is not None

    @property
    def spec_grace(self) -> int:
        """terminationGracePeriodSeconds; 30 is the API server's default."""
        grace = self._head.spec.termination_grace_period_seconds
        return 30 if grace is None else grace

    @property
    def shows_metadata(self) -> bool:
        """Whether a variable or a file may hold its labels or annotations (it may say so of a
        Pod that only mentions them)."""
        return b'"metadata.labels' in self.raw or b'"metadata.annotations' in self.raw

    @property
    def shows_objects(self) -> bool:
        """Whether a variable may come from a ConfigMap or Secret (it may say so of a Pod that
        only mentions them)."""
        return any(word in self.raw for word in _ENV_SOURCES)

    @property
    def has_pull_secrets(self) -> bool:
        """Whether it names imagePullSecrets (it may say so of a Pod that only mentions them)."""
        return b'"imagePullSecrets"' in self.raw

    @property
    def phase(self) -> str:
        return self._head.status.phase

    @property
    def terminal(self) -> bool:
        return self._head.status.phase in TERMINAL_PHASES

    @property
    def started(self) -> bool:
        """The API server knows of a container of it: a sandbox must exist or have existed."""
        status = self._head.status
        return status.phase == "Running" or any(
            container.container_id
            for containers in (status.init_container_statuses, status.container_statuses)
            for container in containers or ()
        )


def decode_pod(raw: msgspec.Raw) -> PodObject:
    """For a reflector: copies the bytes, or they would pin the page they came in."""
    return PodObject(bytes(raw))


class Change(enum.Enum):
    """What an upsert meant for the store."""

    NEW = "new"
    CHANGED = "changed"
    # Older than, or the same as, what is known (usually the echo of our own write).
    STALE = "stale"


class Gone(enum.Enum):
    """See the module's text."""

    GONE = "gone"
    VANISHED = "vanished"


@dataclass
class PodStore:
    """The index. `vanished` holds UIDs that a list left out, until it is known what became of
    them; a Pod in it is not in the index."""

    _by_uid: dict[str, PodObject] = field(default_factory=dict)
    _by_node: dict[str, dict[str, PodObject]] = field(default_factory=dict)
    _by_name: dict[tuple[str, str], str] = field(default_factory=dict)
    vanished: dict[str, PodObject] = field(default_factory=dict)
    _vanished_names: dict[tuple[str, str], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_uid)

    def __contains__(self, uid: object) -> bool:
        return uid in self._by_uid

    def __iter__(self) -> Iterator[PodObject]:
        return iter(self._by_uid.values())

    def get(self, uid: str) -> PodObject | None:
        return self._by_uid.get(uid)

    def by_name(self, namespace: str, name: str) -> PodObject | None:
        uid = self._by_name.get((namespace, name))
        return None if uid is None else self._by_uid[uid]

    def on_node(self, node: str) -> Collection[PodObject]:
        """The Pods bound to a node. A live view: copy it before changing the store."""
        pods = self._by_node.get(node)
        return () if pods is None else pods.values()

    def upsert(self, pod: PodObject) -> tuple[Change, str | None]:
        """Takes a state of a Pod. The second value is the UID that it displaced from its name:
        that Pod is certainly gone, and removed here."""
        known = self._by_uid.get(pod.uid)
        if known is not None:
            if not is_newer(pod.metadata.resource_version, known.metadata.resource_version):
                return Change.STALE, None
            self._insert(pod)
            return Change.CHANGED, None
        self.settle(pod.uid)
        displaced = self._by_name.get((pod.namespace, pod.name))
        if displaced is not None:
            self._remove(displaced)
        self._insert(pod)
        if displaced is None:
            displaced = self._vanished_names.get((pod.namespace, pod.name))
        return Change.NEW, displaced

    def refresh(self, pod: PodObject) -> bool:
        """Takes the answer to one of our writes. Never brings back a Pod that has left."""
        if pod.uid not in self._by_uid:
            return False
        return self.upsert(pod)[0] is Change.CHANGED

    def delete(self, key: ObjectKey, last: PodObject | None) -> tuple[Gone, PodObject] | None:
        """A Pod left. `last` is what its DELETED event carried, None where only a list lacks it.
        Returns None if it was not known, else how sure that is and its newest known state."""
        known = self._remove(key.uid)
        if last is not None:
            before = self.settle(key.uid)
            return None if known is None and before is None else (Gone.GONE, last)
        if known is None:
            return None
        self.vanished[key.uid] = known
        self._vanished_names[(known.namespace, known.name)] = key.uid
        return Gone.VANISHED, known

    def settle(self, uid: str) -> PodObject | None:
        """What became of a vanished Pod is known; forget it. Returns its last state."""
        pod = self.vanished.pop(uid, None)
        if pod is not None and self._vanished_names.get((pod.namespace, pod.name)) == uid:
            del self._vanished_names[(pod.namespace, pod.name)]
        return pod

    def _insert(self, pod: PodObject) -> None:
        old = self._by_uid.get(pod.uid)
        if old is not None and old.node != pod.node:
            self._unlink_node(old)
        self._by_uid[pod.uid] = pod
        self._by_node.setdefault(pod.node, {})[pod.uid] = pod
        self._by_name[(pod.namespace, pod.name)] = pod.uid

    def _remove(self, uid: str) -> PodObject | None:
        pod = self._by_uid.pop(uid, None)
        if pod is None:
            return None
        self._unlink_node(pod)
        if self._by_name.get((pod.namespace, pod.name)) == uid:
            del self._by_name[(pod.namespace, pod.name)]
        return pod

    def _unlink_node(self, pod: PodObject) -> None:
        pods = self._by_node[pod.node]
        del pods[pod.uid]
        if not pods:
            del self._by_node[pod.node]
