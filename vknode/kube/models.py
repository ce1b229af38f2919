"""Trimmed models for hot paths: what the agent reads of an object, the rest stays bytes.

`msgspec.Raw` is a view into the buffer it was decoded from. Whoever keeps one must copy it
(`keep`), or a kilobyte pins a whole list page of megabytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


class ObjectKey(NamedTuple):
    """Which object: a name is reused, the UID never is."""

    namespace: str
    name: str
    uid: str


class OwnerReference(msgspec.Struct, rename="camel", frozen=True):
    api_version: str = msgspec.field(name="apiVersion", default="")
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(msgspec.Struct, rename="camel"):
    """The part of metav1.ObjectMeta that the agent acts on. Times are RFC 3339 text."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.namespace, self.name, self.uid)


class PartialObject(msgspec.Struct):
    metadata: ObjectMeta


class Identity(msgspec.Struct, rename="camel"):
    """The least that says which object it is, for objects that cannot be read otherwise."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class IdentifiedObject(msgspec.Struct):
    metadata: Identity


class ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class ListPage(msgspec.Struct):
    """One page of any list; the items are views into the page's buffer."""

    metadata: ListMeta
    # The API server writes null, not [], for some empty lists.
    items: list[msgspec.Raw] | None = None


class WatchEvent(msgspec.Struct):
    """One line of a watch. `type`: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str
    object: msgspec.Raw


class StatusCause(msgspec.Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0
    causes: list[StatusCause] | None = None


class Status(msgspec.Struct):
    """metav1.Status: the body of an error, and the object of a watch's ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None

    @property
    def cause_reasons(self) -> tuple[str, ...]:
        if self.details is None or not self.details.causes:
            return ()
        return tuple(cause.reason for cause in self.details.causes)


decode_list = msgspec.json.Decoder(ListPage).decode
decode_event = msgspec.json.Decoder(WatchEvent).decode
decode_partial = msgspec.json.Decoder(PartialObject).decode
decode_identity = msgspec.json.Decoder(IdentifiedObject).decode
decode_status = msgspec.json.Decoder(Status).decode
decode_any = msgspec.json.Decoder(dict[str, Any]).decode


def keep(raw: msgspec.Raw) -> msgspec.Raw:
    """A copy that no longer pins the buffer it came from."""
    return raw.copy()


def is_newer(candidate: str, known: str) -> bool:
    """Compares two resourceVersions. Since Kubernetes 1.35 they are defined to be comparable
    integers (before, every API server over etcd wrote integers); others only differ or not."""
    if candidate.isdecimal() and known.isdecimal():
        return int(candidate) > int(known)
    return candidate != known
