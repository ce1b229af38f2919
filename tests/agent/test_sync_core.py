"""Decisions about one Pod: the table, and a simulated world in which any order must end well."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vknode.agent.sync_core import Action, Actual, Desired, Memory, decide, remaining_grace


def desired(**changes: object) -> Desired:
    facts = {
        "deleting": False,
        "terminal": False,
        "started": False,
        "grace": 30,
        "generation": 1,
        "fingerprint": 11,
    } | changes
    return Desired(**facts)  # type: ignore[arg-type]  # a test's shorthand


def actual(**changes: object) -> Actual:
    facts = {"deleting": False, "ended": False, "observed_generation": 1} | changes
    return Actual(**facts)  # type: ignore[arg-type]  # a test's shorthand


def test_a_new_pod_is_created_even_while_the_pool_cannot_be_seen() -> None:
    assert decide(desired(), None, Memory(), view_current=False) is Action.CREATE


def test_what_ran_is_never_created_again() -> None:
    started = desired(started=True)
    assert decide(started, None, Memory(), view_current=False) is Action.NOTHING
    assert decide(started, None, Memory(), view_current=True) is Action.LOST
    assert decide(desired(), None, Memory(ran=True), view_current=True) is Action.LOST


def test_what_was_accepted_and_lost_before_it_ran_is_created_again() -> None:
    memory = Memory(gone=True, fingerprint_sent=11)
    assert decide(desired(), None, memory, view_current=True) is Action.CREATE


def test_adopted_as_it_is_or_brought_up_to_date() -> None:
    assert decide(desired(), actual(), Memory(), view_current=True) is Action.NOTHING
    newer = desired(generation=2)
    assert decide(newer, actual(), Memory(), view_current=True) is Action.UPDATE


def test_changes_after_an_adoption_reach_the_pool() -> None:
    memory = Memory(fingerprint_adopted=10)
    assert decide(desired(), actual(), memory, view_current=True) is Action.UPDATE
    memory.fingerprint_adopted = 11
    assert decide(desired(), actual(), memory, view_current=True) is Action.NOTHING


def test_what_shows_its_labels_is_brought_up_to_date_once_when_adopted() -> None:
    shows = desired(shows_metadata=True)
    memory = Memory()
    assert decide(shows, actual(), memory, view_current=True) is Action.UPDATE
    memory.fingerprint_sent = 11
    assert decide(shows, actual(), memory, view_current=True) is Action.NOTHING


def test_changed_labels_reach_the_pool() -> None:
    memory = Memory(fingerprint_sent=10)
    assert decide(desired(), actual(), memory, view_current=True) is Action.UPDATE


def test_a_deletion_is_finished_only_when_the_pool_said_so() -> None:
    ending = desired(deleting=True, grace=5)
    assert decide(ending, actual(), Memory(), view_current=True) is Action.DELETE
    # Absent is not gone: the pool must be asked.
    assert decide(ending, None, Memory(), view_current=True) is Action.DELETE
    asked = Memory(grace_sent=5)
    assert decide(ending, actual(deleting=True), asked, view_current=True) is Action.NOTHING
    assert decide(ending, None, asked, view_current=False) is Action.NOTHING
    assert decide(ending, None, Memory(grace_sent=5, gone=True), view_current=True) is Action.FINISH


def test_a_grace_is_shortened_never_lengthened() -> None:
    memory = Memory(grace_sent=30)
    shorter = desired(deleting=True, grace=2)
    longer = desired(deleting=True, grace=60)
    assert decide(shorter, actual(deleting=True), memory, view_current=True) is Action.DELETE
    assert decide(longer, actual(deleting=True), memory, view_current=True) is Action.NOTHING


def test_an_object_that_is_gone_ends_its_sandbox() -> None:
    assert decide(None, actual(), Memory(), view_current=True) is Action.DELETE
    assert decide(None, None, Memory(), view_current=True) is Action.DELETE
    assert decide(None, None, Memory(gone=True), view_current=True) is Action.RELEASE


def test_terminal_pods_keep_their_sandbox_for_the_logs() -> None:
    over = desired(terminal=True)
    assert decide(over, actual(ended=True), Memory(), view_current=True) is Action.NOTHING
    assert decide(over, None, Memory(), view_current=True) is Action.NOTHING
    # Somebody else (the Pod garbage collector, an eviction) called it failed.
    assert decide(over, actual(), Memory(), view_current=True) is Action.DELETE


def test_a_refused_pod_is_not_tried_again() -> None:
    assert decide(desired(), None, Memory(given_up=True), view_current=True) is Action.NOTHING


def test_remaining_grace() -> None:
    # Seen alive before: all of it, whatever the clocks say.
    assert remaining_grace(30, 60, deadline=0.0, now=1e9, seen_alive=True) == 30
    # Found deleting after a restart: what the clock leaves, at least a second.
    assert remaining_grace(30, 30, deadline=110.0, now=100.0, seen_alive=False) == 10
    assert remaining_grace(30, 30, deadline=90.0, now=100.0, seen_alive=False) == 1
    assert remaining_grace(None, 45, deadline=None, now=0.0, seen_alive=False) == 45


# -- a world: API server, pool, agent; events in any order, restarts anywhere ----------------


@dataclass
class World:
    """One Pod. `exists`, `deleting`, `terminal` are the API server's; `pool` the pool's truth."""

    exists: bool = True
    deleting: bool = False
    status_running: bool = False
    pool: str = "absent"  # absent, running, ended, deleting
    ever_ran: bool = False
    starts: int = 0
    # What the agent holds: may lag behind `pool`.
    seen: str = "absent"
    current: bool = True
    memory: Memory = field(default_factory=Memory)
    released: bool = False
    lost: bool = False

    def observe(self) -> None:
        """The pool's stream brings the present state."""
        snapshot, self.current = not self.current, True
        if snapshot and self.pool == "absent":
            # It may have gone before the view began, and then nobody says so.
            self.memory.grace_sent = None
        if self.pool == "absent" and self.seen != "absent":
            self.memory.gone = True
        self.seen = self.pool
        if self.seen in ("running", "ended", "deleting"):
            self.memory.ran = True
        self.memory.ended = self.seen == "ended"
        if self.seen != "deleting" and self.seen != "absent":
            self.memory.grace_sent = None

    def restart_agent(self) -> None:
        self.memory = Memory()
        self.seen = "absent"
        self.current = False

    def step(self) -> Action:
        want = desired(deleting=self.deleting, started=self.status_running) if self.exists else None
        have = (
            None
            if self.seen == "absent"
            else actual(deleting=self.seen == "deleting", ended=self.seen == "ended")
        )
        action = decide(want, have, self.memory, view_current=self.current)
        getattr(self, f"do_{action.value}")()
        return action

    def do_nothing(self) -> None:
        pass

    def do_create(self) -> None:
        if self.pool == "absent":
            self.pool = "running"
            self.starts += 1
            self.ever_ran = True
        self.memory.gone = False
        self.memory.fingerprint_sent = 11
        self.seen = self.pool

    def do_update(self) -> None:
        self.memory.fingerprint_sent = 11

    def do_delete(self) -> None:
        if self.pool == "absent":
            self.memory.gone = True
        else:
            self.pool = "deleting"
            self.memory.grace_sent = 30

    def do_finish(self) -> None:
        assert self.pool == "absent", "reported as ended while the pool still had it"
        self.exists = False

    def do_lost(self) -> None:
        assert self.pool == "absent", "called lost while the pool still had it"
        self.lost = True
        self.memory.given_up = True

    def do_release(self) -> None:
        assert self.pool == "absent", "forgotten while the pool still had it"
        self.released = True


EVENTS = [
    "step",
    "observe",
    "restart_agent",
    "write_running",
    "user_deletes",
    "force_delete",
    "pool_removed",
    "pool_ended",
    "blind",
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(EVENTS), max_size=25))
def test_any_order_of_events_ends_well(events: list[str]) -> None:
    world = World()
    for event in events:
        if event == "step":
            world.step()
        elif event == "write_running":
            world.status_running = world.status_running or (
                world.seen in ("running", "ended") and world.exists
            )
        elif event == "user_deletes":
            world.deleting = True
        elif event == "force_delete":
            world.exists = False
        elif event == "pool_removed":
            if world.pool == "deleting":
                world.pool = "absent"
        elif event == "pool_ended":
            if world.pool == "running":
                world.pool = "ended"
        elif event == "blind":
            world.current = False
        else:
            getattr(world, event)()
    # The user deletes in the end, everything is delivered: nothing may be left anywhere.
    world.deleting = True
    for _ in range(10):
        world.observe()
        world.step()
        if world.pool == "deleting":
            world.pool = "absent"
    assert world.pool == "absent"
    assert not world.exists
    assert world.starts <= 1, "a Pod was started twice"


@given(st.lists(st.sampled_from(["step", "observe", "restart_agent", "blind"]), max_size=25))
def test_a_running_pod_is_left_alone_by_restarts_of_the_agent(events: list[str]) -> None:
    world = World()
    world.step()
    world.observe()
    world.status_running = True
    for event in events:
        if event == "step":
            action = world.step()
            assert action in (Action.NOTHING, Action.UPDATE)
        elif event == "blind":
            world.current = False
        else:
            getattr(world, event)()
    assert world.pool == "running"
    assert world.starts == 1
    assert not world.lost
