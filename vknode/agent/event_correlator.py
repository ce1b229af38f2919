"""Which occurrences become Events, which raise a count, which are dropped. Pure.

The rules are those of client-go's EventCorrelator, so that `kubectl describe` reads as people
know it:

* the same event again (object, type, reason, message) raises `count` of the one Event;
* more than `AGGREGATE_AFTER` different messages of one reason within `AGGREGATE_SECONDS`
  become one Event "(combined from similar events): …";
* an object may have `BURST` events, then one every 5 minutes; the rest is dropped and counted.

Caches are bounded (least recently used leaves).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

BURST = 25
REFILL_PER_SECOND = 1 / 300
AGGREGATE_AFTER = 10
AGGREGATE_SECONDS = 600.0
CACHE_ENTRIES = 4096
MAX_MESSAGE = 1024  # bytes; the API server refuses longer ones
COMBINED = "(combined from similar events): "


class ObjectRef(NamedTuple):
    """What an event is about (`involvedObject`)."""

    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str = "v1"
    resource_version: str = ""
    field_path: str = ""


@dataclass
class Record:
    """One Event object: how it shall look now. Times are seconds since the epoch."""

    name: str
    ref: ObjectRef
    host: str
    type: str
    reason: str
    message: str
    first: float
    last: float
    count: int = 1
    written: bool = field(default=False)


_V = TypeVar("_V")


class _Recent(Generic[_V]):
    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[Hashable, _V] = OrderedDict()

    def get(self, key: Hashable) -> _V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: _V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._entries:
            self._values.popitem(last=False)


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class _Group:
    last: float
    messages: set[str] = field(default_factory=set)


class EventCorrelator:
    """`observe` is told of each occurrence and says which Event it belongs to."""

    def __init__(self, *, make_name: Callable[[str], str], entries: int = CACHE_ENTRIES) -> None:
        self.dropped = 0
        self._make_name = make_name
        self._buckets: _Recent[_Bucket] = _Recent(entries)
        self._groups: _Recent[_Group] = _Recent(entries)
        self._records: _Recent[Record] = _Recent(entries)

    def observe(
        self, ref: ObjectRef, host: str, type: str, reason: str, message: str, now: float
    ) -> Record | None:
        """The Event to create or update for this occurrence; None when it is one too many."""
        # The object's revision says when, not what: it must not tell events apart.
        about = ref._replace(resource_version="")
        message = clip(message)
        key: Hashable = (host, about, type, reason, message)
        group_key = (host, about._replace(field_path=""), type, reason)
        if self._is_combined(group_key, message, now):
            key = group_key
            message = clip(COMBINED + message)
        if not self._may((host, about._replace(field_path=""), type), now):
            self.dropped += 1
            return None
        record = self._records.get(key)
        if record is None:
            name = self._make_name(ref.name)
            record = Record(name, ref, host, type, reason, message, first=now, last=now)
            self._records.put(key, record)
        else:
            record.count += 1
            record.last = now
            record.message = message
        return record

    def _may(self, key: Hashable, now: float) -> bool:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = _Bucket(float(BURST), now)
            self._buckets.put(key, bucket)
        elapsed = max(0.0, now - bucket.at)
        bucket.tokens = min(float(BURST), bucket.tokens + elapsed * REFILL_PER_SECOND)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _is_combined(self, key: Hashable, message: str, now: float) -> bool:
        group = self._groups.get(key)
        if group is None or now - group.last > AGGREGATE_SECONDS:
            group = _Group(now)
            self._groups.put(key, group)
        group.messages.add(message)
        group.last = now
        if len(group.messages) < AGGREGATE_AFTER:
            return False
        group.messages.pop()  # it need not grow further to stay over the limit
        return True


def clip(message: str) -> str:
    """The message cut to what the API server takes, at a character's border."""
    data = message.encode()
    if len(data) <= MAX_MESSAGE:
        return message
    return data[: MAX_MESSAGE - 3].decode("utf-8", "ignore") + "..."
