"""What watchers of sandboxes are told: revisioned, coalescing, bounded. Pure.

Theory of operation
-------------------
Only the newest state of a sandbox matters, so no log of changes is kept. Every
change gives the pool a new revision and puts its sandbox at the end of one ordered
map UID → revision. A watcher is nothing but a cursor into that order: the sandboxes
behind it are those with a higher revision, each once, however often they changed.
A slow watcher costs no memory and no work until it reads.

A batch takes the next sandboxes in order of revision and carries the revision of its
last one: what is behind that comes later, what was before it is told. Hence a client
may go on from any revision that it has acted on, also over a new connection. Only
the ends bound that: the last `keep_gone` ended sandboxes are remembered (for whoever asks
to end them once more, too); a client
that stands before a forgotten end (`floor`) gets a snapshot, as does one with
another epoch.

| a client stands at        | it gets                                     |
|---------------------------|---------------------------------------------|
| no or another epoch       | a snapshot                                  |
| before `floor`            | a snapshot (an end may have been forgotten) |
| after the newest revision | a snapshot (it cannot be ours)              |
| anywhere else             | what changed since                          |

Events are delivered at most once and only to who is connected; each watcher has a
bounded queue, and what it drops is counted.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

from vknode.pool.v1 import pool_pb2, status_pb2

MAX_ENTRIES = 500
MAX_BYTES = 1 << 20  # far below gRPC's 4 MiB
KEEP_GONE = 10_000
KEEP_EVENTS = 2_000


class Journal:
    """All sandboxes of a pool and the order in which they last changed."""

    def __init__(self, epoch: str, *, keep_gone: int = KEEP_GONE) -> None:
        self.epoch = epoch
        self.revision = 0
        self.floor = 0
        self._keep_gone = keep_gone
        self._latest: dict[str, status_pb2.Sandbox] = {}
        self._gone: dict[str, status_pb2.Sandbox] = {}
        self._order: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._watchers: set[Watcher] = set()
        self.events_dropped = 0

    def put(self, sandbox: status_pb2.Sandbox, *, quiet: bool = False) -> None:
        """A new or changed sandbox; the message must not be written to any more.
        `quiet`: watchers need not be woken for it (call `wake` within a moment)."""
        self._gone.pop(sandbox.uid, None)
        self._latest[sandbox.uid] = sandbox
        self._move(sandbox.uid)
        if not quiet:
            self.wake()

    def remove(self, sandbox: status_pb2.Sandbox) -> None:
        """A sandbox has ended and was removed; with the last thing known of it."""
        if self._latest.pop(sandbox.uid, None) is None:
            return
        self._gone[sandbox.uid] = sandbox
        self._move(sandbox.uid)
        while len(self._gone) > self._keep_gone:
            uid = next(iter(self._gone))
            del self._gone[uid]
            self.floor = max(self.floor, self._order.pop(uid))
        self.wake()

    def last_of(self, uid: str) -> status_pb2.Sandbox | None:
        """The last thing known of an ended sandbox, while it is remembered."""
        return self._gone.get(uid)

    def event(self, event: status_pb2.SandboxEvent, *, quiet: bool = False) -> None:
        """As `put`: a quiet one wakes nobody."""
        for watcher in self._watchers:
            watcher.offer(event, quiet=quiet)

    def wake(self) -> None:
        """Tell the watchers that are behind."""
        for watcher in self._watchers:
            watcher.poke()

    def watch(self, epoch: str, revision: int, wake: Callable[[], None]) -> Watcher:
        """A watcher that stands at (`epoch`, `revision`). `wake` is called, perhaps
        several times, when there may be something to read. Close it."""
        known = epoch == self.epoch and self.floor <= revision <= self.revision
        watcher = Watcher(self, revision if known else None, wake)
        self._watchers.add(watcher)
        return watcher

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def _move(self, uid: str) -> None:
        self.revision += 1
        self._order[uid] = self.revision
        self._order.move_to_end(uid)

    def _behind(self, revision: int) -> list[str]:
        """UIDs changed after that revision, oldest change first."""
        found = []
        for uid in reversed(self._order):
            if self._order[uid] <= revision:
                break
            found.append(uid)
        found.reverse()
        return found


class Watcher:
    """One client's place in the journal."""

    def __init__(self, journal: Journal, revision: int | None, wake: Callable[[], None]) -> None:
        self._journal = journal
        self._wake = wake
        self._revision = revision or 0
        self._snapshot: Iterator[pool_pb2.WatchSandboxesResponse] | None = None
        if revision is None:
            self._snapshot = self._pieces()
        self._events: collections.deque[status_pb2.SandboxEvent] = collections.deque()
        self.dropped = 0

    def close(self) -> None:
        self._journal._watchers.discard(self)

    def offer(self, event: status_pb2.SandboxEvent, *, quiet: bool) -> None:
        if len(self._events) >= KEEP_EVENTS:
            self._events.popleft()
            self.dropped += 1
            self._journal.events_dropped += 1
        self._events.append(event)
        if not quiet:
            self._wake()

    def poke(self) -> None:
        if self._snapshot is not None or self._events or self._revision < self._journal.revision:
            self._wake()

    def take(self) -> pool_pb2.WatchSandboxesResponse | None:
        """The next batch; None where there is nothing to tell."""
        journal = self._journal
        if self._snapshot is not None:
            piece = next(self._snapshot)
            if piece.snapshot_end:
                self._snapshot = None
                self._revision = piece.revision
            return piece
        # An overrun cursor (its ends were forgotten meanwhile) starts anew.
        if self._revision < journal.floor:
            self._snapshot = self._pieces()
            return self.take()
        batch = pool_pb2.WatchSandboxesResponse(epoch=journal.epoch)
        room = MAX_BYTES
        count = 0
        for uid in journal._behind(self._revision):
            sandbox = journal._latest.get(uid)
            into = batch.sandboxes
            if sandbox is None:
                sandbox, into = journal._gone[uid], batch.gone
            room -= sandbox.ByteSize()
            if count and (room < 0 or count >= MAX_ENTRIES):
                break
            into.append(sandbox)
            count += 1
            self._revision = journal._order[uid]
        taken = min(len(self._events), MAX_ENTRIES)
        for _ in range(taken):
            batch.events.append(self._events.popleft())
        if not count and not taken:
            return None
        batch.revision = self._revision
        return batch

    def _pieces(self) -> Iterator[pool_pb2.WatchSandboxesResponse]:
        """The snapshot of this very moment, in bounded pieces."""
        journal = self._journal
        return _split(journal.epoch, journal.revision, list(journal._latest.values()))


def _split(
    epoch: str, revision: int, sandboxes: list[status_pb2.Sandbox]
) -> Iterator[pool_pb2.WatchSandboxesResponse]:
    piece = pool_pb2.WatchSandboxesResponse(epoch=epoch, revision=revision, snapshot=True)
    room = MAX_BYTES
    for sandbox in sandboxes:
        size = sandbox.ByteSize()
        if piece.sandboxes and (room < size or len(piece.sandboxes) >= MAX_ENTRIES):
            yield piece
            piece = pool_pb2.WatchSandboxesResponse(epoch=epoch, revision=revision, snapshot=True)
            room = MAX_BYTES
        piece.sandboxes.append(sandbox)
        room -= size
    piece.snapshot_end = True
    yield piece
