"""Any client, however slow and however often cut off, ends with the truth."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vknode.pool import journal as journal_module
from vknode.pool.journal import KEEP_EVENTS, Journal, Watcher
from vknode.pool.v1 import status_pb2


def sandbox(uid: str, generation: int, size: int = 0) -> status_pb2.Sandbox:
    return status_pb2.Sandbox(uid=uid, observed_generation=generation, message="x" * size)


class Client:
    """What a client holds by the contract's rules."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.epoch, self.revision = "", 0
        self.held: dict[str, int] = {}
        self.named: set[str] = set()
        self.snapshots = 0
        self.watcher: Watcher | None = None
        self.connect()

    def connect(self) -> None:
        if self.watcher is not None:
            self.watcher.close()
        self.named = set()
        self.watcher = self.journal.watch(self.epoch, self.revision, lambda: None)

    def read(self) -> bool:
        assert self.watcher is not None
        batch = self.watcher.take()
        if batch is None:
            return False
        if batch.snapshot:
            self.named |= {s.uid for s in batch.sandboxes}
            if batch.snapshot_end:
                self.snapshots += 1
                self.held = {u: g for u, g in self.held.items() if u in self.named}
                self.named = set()
        else:
            assert batch.revision > self.revision or not (batch.sandboxes or batch.gone)
        uids = [s.uid for s in (*batch.sandboxes, *batch.gone)]
        assert len(uids) == len(set(uids)) <= 500
        for one in batch.sandboxes:
            self.held[one.uid] = one.observed_generation
        for one in batch.gone:
            self.held.pop(one.uid, None)
        if not batch.snapshot or batch.snapshot_end:
            # Only then may it go on from here.
            self.epoch, self.revision = batch.epoch, batch.revision
        return True


STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7)),
    st.tuples(st.just("remove"), st.integers(0, 7)),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("cut"), st.integers(0, 2)),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, max_size=80), keep_gone=st.integers(0, 4), entries=st.integers(1, 4))
def test_every_client_converges(steps: list[tuple[str, int]], keep_gone: int, entries: int) -> None:
    before = journal_module.MAX_ENTRIES
    journal_module.MAX_ENTRIES = entries
    try:
        journal = Journal("e1", keep_gone=keep_gone)
        clients = [Client(journal) for _ in range(3)]
        truth: dict[str, int] = {}
        for number, (what, which) in enumerate(steps):
            uid = f"u{which}"
            if what == "put":
                truth[uid] = number
                journal.put(sandbox(uid, number))
            elif what == "remove":
                truth.pop(uid, None)
                journal.remove(sandbox(uid, number))
            elif what == "read":
                clients[which].read()
            else:
                clients[which].connect()
        for client in clients:
            for _ in range(200):
                if not client.read():
                    break
            assert client.held == truth
            assert client.revision == journal.revision
    finally:
        journal_module.MAX_ENTRIES = before


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40),
    cut=st.integers(0, 40),
)
def test_a_replay_says_the_same_as_a_snapshot(changes: list[tuple[bool, int]], cut: int) -> None:
    journal = Journal("e1")
    replaying = Client(journal)
    for number, (put, which) in enumerate(changes):
        if number == cut:
            while replaying.read():
                pass
        (journal.put if put else journal.remove)(sandbox(f"u{which}", number))
    while replaying.read():
        pass
    fresh = Client(journal)
    while fresh.read():
        pass
    assert replaying.held == fresh.held
    assert replaying.snapshots == fresh.snapshots == 1


def test_only_the_newest_state_is_told_and_a_slow_client_costs_nothing() -> None:
    journal = Journal("e1")
    client = Client(journal)
    client.read()
    for number in range(10_000):
        journal.put(sandbox("u", number))
    assert client.watcher is not None
    batch = client.watcher.take()
    assert batch is not None and [s.observed_generation for s in batch.sandboxes] == [9_999]
    assert client.watcher.take() is None


def test_a_snapshot_and_a_batch_are_cut_by_size() -> None:
    journal = Journal("e1")
    late = Client(journal)
    late.read()
    for number in range(30):
        journal.put(sandbox(f"u{number}", 1, size=100_000))
    fresh = Client(journal)
    for client in (late, fresh):
        assert client.watcher is not None
        count = 0
        while (batch := client.watcher.take()) is not None:
            count += len(batch.sandboxes)
            assert batch.ByteSize() < 2 << 20
        assert count == 30


def test_who_stands_before_a_forgotten_end_gets_a_snapshot() -> None:
    journal = Journal("e1", keep_gone=2)
    client = Client(journal)
    client.read()
    for number in range(5):
        journal.put(sandbox(f"u{number}", 1))
    while client.read():
        pass
    for number in range(4):
        journal.remove(sandbox(f"u{number}", 2))
    while client.read():
        pass
    assert client.held == {"u4": 1} and client.snapshots == 2
    assert [n for n in range(5) if journal.last_of(f"u{n}") is not None] == [2, 3]


def test_another_epoch_and_the_future_get_a_snapshot() -> None:
    journal = Journal("e1")
    journal.put(sandbox("u", 1))
    for epoch, revision in (("", 0), ("e0", 1), ("e1", 99)):
        batch = journal.watch(epoch, revision, lambda: None).take()
        assert batch is not None and batch.snapshot and batch.snapshot_end
    assert journal.watch("e1", 1, lambda: None).take() is None


def test_an_empty_pool_says_so() -> None:
    batch = Journal("e1").watch("", 0, lambda: None).take()
    assert batch is not None and batch.snapshot and batch.snapshot_end and not batch.sandboxes


def test_events_are_bounded_and_the_loss_is_counted() -> None:
    journal = Journal("e1")
    watcher = journal.watch("e1", 0, lambda: None)
    for number in range(KEEP_EVENTS + 10):
        journal.event(status_pb2.SandboxEvent(uid="u", message=str(number)))
    got: list[Any] = []
    while (batch := watcher.take()) is not None:
        got += batch.events
    assert len(got) == KEEP_EVENTS and got[-1].message == str(KEEP_EVENTS + 9)
    assert watcher.dropped == journal.events_dropped == 10


def test_quiet_changes_wake_nobody_until_asked() -> None:
    journal = Journal("e1")
    calls: list[int] = []
    watcher = journal.watch("", 0, lambda: calls.append(1))
    watcher.take()
    journal.put(sandbox("u", 1), quiet=True)
    journal.event(status_pb2.SandboxEvent(uid="u"), quiet=True)
    assert not calls
    journal.wake()
    assert calls
    watcher.close()
    assert journal.watchers == 0
