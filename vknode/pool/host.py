"""Drives all sandbox machines of a pool: actions onto the runtime, answers back.

Theory of operation
-------------------
The host is the only place where the pure parts meet an event loop. For every sandbox
it holds an `_Entry` with the machine. Whatever happens becomes an event for one
machine (`_feed`): an answer, a runtime event, a timer, a request. The actions that
come out are carried out at once: small ones here, runtime calls as one task each
(`_fly`), through the gates of `lanes`. A start's slot is given back only after its
answer was taken in, so the first container of a new sandbox is already queued, with the
better priority.

Status changes reach the journal through `telling`, calls the runtime through `calls`.

Health: `HealthChanged(False)` makes all cells UNHEALTHY and every machine hold still;
on the way back an inventory goes to every machine, then the cells are HEALTHY.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from vknode.pool import calls
from vknode.pool.alarms import Alarms
from vknode.pool.cells import CellBook
from vknode.pool.clock import SteadyClock
from vknode.pool.engine import steps
from vknode.pool.engine.inventory import newest_of_each
from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.engine.newer import newer
from vknode.pool.errors import (
    NOT_FOUND,
    REFUSED,
    RETRYABLE,
    PoolFailure,
)
from vknode.pool.journal import Journal
from vknode.pool.lanes import Lanes
from vknode.pool.probe_counts import probe_counts
from vknode.pool.refusing import infeasible, instance_of, new_problems, problems, refuse
from vknode.pool.runtimes.base import (
    ContainerExited,
    ContainerRef,
    EventsLost,
    Failure,
    HealthChanged,
    RunningSandbox,
    Runtime,
    RuntimeAway,
    RuntimeEvent,
    RuntimeInfo,
    SandboxDied,
    SandboxOverLimit,
)
from vknode.pool.store import Store, not_stored
from vknode.pool.telling import Teller
from vknode.pool.v1 import cell_pb2, pool_pb2, spec_pb2, stats_pb2, status_pb2
from vknode.pool.validation import check_spec

log = structlog.get_logger()

_RETRY_SECONDS = (0.2, 5.0)  # an inventory that failed: first and longest wait


@dataclass(slots=True, eq=False)
class _Flight:
    """A runtime call under way for one op."""

    task: asyncio.Task[None] | None = None
    begun: bool = False
    droppable: bool = False  # may be cancelled even after it has begun


@dataclass(slots=True, eq=False)
class _Entry:
    machine: SandboxMachine
    flights: dict[int, _Flight] = field(default_factory=dict)
    ended: dict[str, tuple[ContainerRef, asyncio.Event]] = field(default_factory=dict)
    stored: steps.Persisted | None = None  # where that is known


class Host:
    """One pool's sandboxes. `start` first, `close` last; all calls on one loop."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        cells: CellBook,
        *,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """`clock` gives nanoseconds since the Unix epoch and never falls."""
        self.runtime = runtime
        self.cells = cells
        self.journal = Journal(secrets.token_hex(8))
        self._teller = Teller(self.journal)
        self._store = store
        self._clock = clock = clock or SteadyClock()
        self._info: RuntimeInfo | None = None
        self._entries: dict[str, _Entry] = {}
        self._inbox: list[tuple[_Entry, steps.Event]] = []
        self._feeding = False
        self._alarms = Alarms(clock, self._ring)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._healthy = asyncio.Event()
        self._inventory_task: asyncio.Task[None] | None = None
        self._inventory_wanted = False
        self._cell_watchers: set[asyncio.Event] = set()
        self._watchers: set[asyncio.Event] = set()
        self._orphans: set[str] = set()  # being removed
        self.lanes = Lanes(runtime.best_width)

    # -- life of the host -------------------------------------------------------

    async def start(self) -> None:
        """Connect, adopt what runs, remove what nobody asked for. Raises Failure
        (RuntimeAway included) where the runtime cannot be used."""
        self._info = await self.runtime.connect()
        self.cells.describe(self._info)
        seen = newest_of_each(await self.runtime.inventory())
        now = self._clock()
        adopted = []
        for stored in self._store.load():
            spec = stored.spec
            machine = SandboxMachine.adopt(
                spec, stored.state, seen.pop(spec.uid, None), now, scheme=self._info.scheme
            )
            entry = _Entry(machine)
            self._entries[spec.uid] = entry
            if not machine.terminal:
                self.cells.readmit(machine.spec)
            adopted.append(entry)
        self._set_health(True)
        self._spawn(self._follow_events())
        for entry in adopted:
            self._feed(entry, steps.Tick())
        for entry in adopted:
            machine = entry.machine
            if machine.resize_pending:
                self._feed(
                    entry,
                    steps.Reconsidered(*self._resize(machine)),
                )
        for uid in seen:
            log.warning("orphan_sandbox_removed", uid=uid, why="no spec is stored for it")
            self._orphans.add(uid)
            self._spawn(self._remove_orphan(uid))
        self._teller.settle()
        # What happened between the inventory and the first event is in a second one.
        self._take_inventory()
        log.info("host_started", adopted=len(adopted), orphans=len(seen))

    async def close(self) -> None:
        """Let go: sandboxes go on running. Idempotent."""
        self._closing = True
        self._alarms.close()
        self._teller.close()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiter in (*self._cell_watchers, *self._watchers):
            waiter.set()
        await self.runtime.close()

    # -- requests ---------------------------------------------------------------

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]:
        """Take a sandbox over. Raises PoolFailure; then nothing of it is kept."""
        self._check_open()
        entry = self._entries.get(spec.uid)
        if entry is not None:
            return entry.machine.status(), False
        refuse(problems(self.runtime, spec))
        if not self._healthy.is_set():
            raise PoolFailure(RETRYABLE, "the pool's runtime is away; try again")
        if spec.uid in self._orphans:
            raise PoolFailure(RETRYABLE, "an older sandbox of this UID is being removed")
        assert self._info is not None
        kept = spec_pb2.SandboxSpec()
        kept.CopyFrom(spec)
        state = steps.Persisted(owner=owner, created_at=self._clock())
        self.cells.admit(kept)
        try:
            self._store.save(kept, state)
        except OSError as error:
            self.cells.release(kept.uid)
            raise not_stored(error) from error
        entry = _Entry(SandboxMachine(kept, state, scheme=self._info.scheme))
        self._entries[kept.uid] = entry
        self._feed(entry, steps.Tick())
        return entry.machine.status(), True

    async def update(self, spec: spec_pb2.SandboxSpec) -> tuple[status_pb2.Sandbox, list[str]]:
        """Take over what can change of a newer spec; also gives the paths of what stays.
        Raises PoolFailure; then the older one holds."""
        self._check_open()
        entry = self._entry(spec.uid)
        machine = entry.machine
        if spec.generation < machine.spec.generation:
            raise PoolFailure(
                REFUSED,
                f"the pool has generation {machine.spec.generation} already",
                field="generation",
            )
        before = machine.wanted
        if spec == before or machine.deleting or machine.terminal:
            return machine.status(), []
        after, kept = newer(before, spec)
        if after == before:
            return machine.status(), kept
        check_spec(after)
        new = new_problems(self.runtime, machine.spec, after)
        refuse([one for one in new if not one.of_resources])
        never = infeasible(new)
        state = machine.persisted_after(after, (never or self.cells.fits(after))[0])
        try:
            self._store.save(after, state)
        except OSError as error:
            raise not_stored(error) from error
        entry.stored = state
        reason, message = never or self.cells.resize(after)
        self._feed(entry, steps.Update(after, reason, message))
        self._reconsider(after.cell)
        return machine.status(), kept

    async def delete(self, uid: str, grace: float | None, reason: str) -> bool:
        """End a sandbox; `grace` in seconds, None for the spec's own. False: unknown."""
        self._check_open()
        entry = self._entries.get(uid)
        if entry is None:
            return False
        self._feed(entry, steps.Delete(grace, reason))
        return True

    def drain(self, names: Collection[str]) -> None:
        """Empty these cells: they take no new sandbox, and what is on them ends within its
        own grace, failed. All other cells take new ones. Idempotent."""
        version = self.cells.version
        self.cells.drain(names)
        self._tell_cells(version)
        for entry in list(self._entries.values()):
            if entry.machine.spec.cell in names:
                self._feed(entry, steps.Drained())

    def last_of(self, uid: str) -> status_pb2.Sandbox | None:
        """The last state of a sandbox that ended not long ago."""
        return self.journal.last_of(uid)

    async def watch(
        self, epoch: str, revision: int
    ) -> AsyncIterator[pool_pb2.WatchSandboxesResponse]:
        """Snapshot or replay, then changes, for ever. Close the iterator."""
        awake = asyncio.Event()
        self._teller.settle()
        watcher = self.journal.watch(epoch, revision, awake.set)
        self._watchers.add(awake)
        try:
            while not self._closing:
                awake.clear()
                batch = watcher.take()
                if batch is not None:
                    yield batch
                else:
                    await awake.wait()
        finally:
            watcher.close()
            self._watchers.discard(awake)
            if watcher.dropped:
                log.warning("events_dropped", count=watcher.dropped)

    async def watch_cells(self) -> AsyncIterator[cell_pb2.WatchCellsResponse]:
        """All cells, then those that change, for ever. Close the iterator."""
        changed = asyncio.Event()
        self._cell_watchers.add(changed)
        try:
            version = self.cells.version
            yield cell_pb2.WatchCellsResponse(snapshot=True, cells=self.cells.cells())
            while not self._closing:
                changed.clear()
                if self.cells.version == version:
                    await changed.wait()
                    continue
                cells, version = self.cells.cells(version), self.cells.version
                yield cell_pb2.WatchCellsResponse(cells=cells)
        finally:
            self._cell_watchers.discard(changed)

    def instance(
        self, uid: str, container: str, previous: bool = False
    ) -> tuple[ContainerRef, asyncio.Event]:
        """The newest instance of a container (or the one before it), and an event that
        is set once it has ended. Raises PoolFailure: NOT_FOUND for an unknown sandbox
        or container or a missing previous instance, wrong state before the first."""
        entry = self._entry(uid)
        machine = entry.machine
        ref = instance_of(machine, container, previous)
        runs = not previous and machine.running(container)
        if not runs:
            over = asyncio.Event()
            over.set()
            return ref, over
        return ref, entry.ended.setdefault(ref.id, (ref, asyncio.Event()))[1]

    def running_sandbox(self, uid: str) -> RunningSandbox:
        """Raises PoolFailure: NOT_FOUND, or wrong state while it has no network."""
        machine = self._entry(uid).machine
        if machine.sandbox is None or machine.terminal:
            raise PoolFailure(
                REFUSED, f"pod {machine.spec.name!r} is not running", wrong_state=True
            )
        return machine.sandbox

    def probe_stats(self, uids: Collection[str], cell: str) -> list[stats_pb2.SandboxStats]:
        """Of the sandboxes that are asked for, as ListStatsRequest."""
        entries = map(self._entries.get, uids) if uids else self._entries.values()
        return probe_counts((one.machine for one in entries if one is not None), cell)

    def __len__(self) -> int:
        return len(self._entries)

    def _entry(self, uid: str) -> _Entry:
        entry = self._entries.get(uid)
        if entry is None:
            raise PoolFailure(NOT_FOUND, f"this pool has no sandbox {uid!r}")
        return entry

    def _check_open(self) -> None:
        if self._closing or self._info is None:
            raise PoolFailure(RETRYABLE, "the pool is starting or stopping; try again")

    def _resize(self, machine: SandboxMachine) -> tuple[str, str]:
        """As `CellBook.resize`, for what is wanted."""
        new = new_problems(self.runtime, machine.spec, machine.wanted)
        return infeasible(new) or self.cells.resize(machine.wanted)

    # -- machines ---------------------------------------------------------------

    def _reconsider(self, cell: str) -> None:
        """Room may have come free: the resizes that wait for it, the most important first."""
        for uid in self.cells.deferred(cell):
            entry = self._entries.get(uid)
            if entry is None or entry.machine.deleting or entry.machine.terminal:
                continue
            reason, _ = self._resize(entry.machine)
            if not reason:
                self._feed(entry, steps.Reconsidered())

    def _feed(self, entry: _Entry, event: steps.Event) -> None:
        """An event for one machine, and everything that follows from it."""
        self._inbox.append((entry, event))
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._inbox:
                entry, event = self._inbox.pop(0)
                for action in entry.machine.handle(event, self._clock()):
                    self._act(entry, action)
                self._after(entry)
        finally:
            self._feeding = False

    def _act(self, entry: _Entry, action: steps.Action) -> None:
        if isinstance(action, steps.Emit):
            self._teller.event(action.event)
        elif isinstance(action, steps.Persist):
            self._keep(entry, action.state)
        elif isinstance(action, steps.Observe):
            self._take_inventory()
        elif isinstance(action, steps.Cancel):
            flight = entry.flights.get(action.op)
            if flight is not None and (flight.droppable or not flight.begun):
                assert flight.task is not None
                flight.task.cancel()
                del entry.flights[action.op]
                self._inbox.append((entry, steps.Cancelled(action.op)))
        else:
            flight = _Flight(
                droppable=isinstance(action, steps.EnsureImage | steps.Probe | steps.RunHook)
            )
            entry.flights[action.op] = flight
            flight.task = self._spawn(self._fly(entry, action, flight))

    def _after(self, entry: _Entry) -> None:
        machine = entry.machine
        if not machine.gone:
            self._teller.changed(machine)
        for key, (ref, over) in list(entry.ended.items()):
            if machine.gone or machine.instance(ref.name) != ref or not machine.running(ref.name):
                over.set()
                del entry.ended[key]
        if machine.terminal:
            self._release(machine)
        if machine.gone:
            self._forget(entry)
        else:
            self._alarms.set(machine.uid, machine.wake_at)

    def _ring(self, uid: str) -> None:
        entry = self._entries.get(uid)
        if entry is not None:
            self._feed(entry, steps.Tick())

    def _forget(self, entry: _Entry) -> None:
        uid = entry.machine.uid
        if self._entries.get(uid) is not entry:
            return
        del self._entries[uid]
        self._release(entry.machine)
        for flight in entry.flights.values():
            if flight.task is not None and flight.task is not asyncio.current_task():
                flight.task.cancel()
        try:
            self._store.remove(uid)
        except OSError as error:
            log.error("stored_spec_not_removed", uid=uid, error=str(error))
        self._alarms.set(uid, None)
        self._teller.gone(entry.machine)

    def _release(self, machine: SandboxMachine) -> None:
        if self.cells.release(machine.uid):
            self._reconsider(machine.spec.cell)

    def _keep(self, entry: _Entry, state: steps.Persisted) -> None:
        uid = entry.machine.uid
        if state == entry.stored:
            return
        try:
            self._store.save_state(uid, state)
            entry.stored = state
        except OSError as error:
            # A deletion must not fail because a disk is full: it is what frees it.
            log.error("state_not_stored", uid=uid, error=str(error))

    # -- the runtime ------------------------------------------------------------

    async def _fly(self, entry: _Entry, action: Any, flight: _Flight) -> None:
        """Carry one action out and bring its answer back."""
        failed = await calls.prepare(self.runtime, entry.machine, action)
        if failed is not None:
            self._land(entry, action, flight, failed)
            return
        lane, priority = self.lanes.of(action)
        if lane is None:
            flight.begun = True
            self._land(
                entry,
                action,
                flight,
                await calls.carry_out(self.runtime, entry.machine, action, self._clock),
            )
            return
        async with lane.enter(priority):
            flight.begun = True
            answer = await calls.carry_out(self.runtime, entry.machine, action, self._clock)
            self._land(entry, action, flight, answer)
            # Still inside for one turn: what follows from the answer queues up first.
            await asyncio.sleep(0)

    def _land(self, entry: _Entry, action: Any, flight: _Flight, answer: steps.Event) -> None:
        if entry.flights.get(action.op) is flight:
            del entry.flights[action.op]
            self._feed(entry, answer)

    async def _follow_events(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(_generator(self.runtime.events())) as events:
                    async for event in events:
                        self._runtime_event(event)
                log.error("runtime_events_ended")
            except Failure as error:
                log.warning("runtime_events_failed", reason=error.reason)
            except Exception as error:  # deaf for a second, not for ever
                log.error("runtime_defect", call="events", exc_info=error)
            await asyncio.sleep(1)
            self._take_inventory()

    def _runtime_event(self, event: RuntimeEvent) -> None:
        if isinstance(event, ContainerExited):
            entry = self._entries.get(event.ref.uid)
            if entry is not None:
                self._feed(entry, event)
        elif isinstance(event, SandboxDied | SandboxOverLimit):
            entry = self._entries.get(event.uid)
            if entry is not None:
                self._feed(entry, event)
        elif isinstance(event, EventsLost):
            self._take_inventory()
        elif isinstance(event, HealthChanged):
            if event.healthy:
                self._take_inventory()
            else:
                self._lose_runtime(event.reason, event.message)

    def _lose_runtime(self, reason: str, message: str) -> None:
        self._set_health(False, reason, message)
        for entry in list(self._entries.values()):
            self._feed(entry, steps.RuntimeLost())

    def _set_health(self, healthy: bool, reason: str = "", message: str = "") -> None:
        if healthy:
            self._healthy.set()
        else:
            self._healthy.clear()
        version = self.cells.version
        self.cells.set_health(healthy, reason, message)
        if self._tell_cells(version):
            log.info("pool_health", healthy=healthy, reason=reason)

    def _tell_cells(self, version: int) -> bool:
        """Whether any has changed since that version."""
        if self.cells.version == version:
            return False
        for waiter in self._cell_watchers:
            waiter.set()
        return True

    def _take_inventory(self) -> None:
        """One at a time; whoever asks meanwhile is served by the next."""
        self._inventory_wanted = True
        if self._inventory_task is None and not self._closing:
            self._inventory_task = self._spawn(self._inventory())

    async def _inventory(self) -> None:
        wait, longest = _RETRY_SECONDS
        try:
            while self._inventory_wanted:
                self._inventory_wanted = False
                as_of = self._clock()
                try:
                    seen = newest_of_each(await self.runtime.inventory())
                except Exception as error:  # a defect, too, must not leave machines holding
                    if isinstance(error, Failure):
                        log.warning("inventory_failed", reason=error.reason)
                    else:
                        log.error("runtime_defect", call="inventory", exc_info=error)
                    if isinstance(error, RuntimeAway) and self._healthy.is_set():
                        self._lose_runtime(error.reason, error.message)
                    self._inventory_wanted = True
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, longest)
                    continue
                self._set_health(True)
                # To all, whoever asked: what an inventory shows as ended is not told again.
                for uid in list(self._entries):
                    entry = self._entries.get(uid)
                    if entry is not None:
                        self._feed(entry, steps.Observed(seen.get(uid), as_of))
        finally:
            self._inventory_task = None

    async def _remove_orphan(self, uid: str) -> None:
        wait, longest = _RETRY_SECONDS
        while True:
            try:
                async with self.lanes.end.enter():
                    await self.runtime.remove_sandbox(uid)
                self._orphans.discard(uid)
                return
            except Failure as error:
                log.warning("orphan_not_removed", uid=uid, reason=error.reason)
            except Exception as error:  # given up, its UID could never be created again
                log.error("runtime_defect", uid=uid, call="remove_sandbox", exc_info=error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, longest)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spent)
        return task

    def _spent(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("host_task_failed", exc_info=task.exception())


async def _generator(events: AsyncIterator[RuntimeEvent]) -> AsyncGenerator[RuntimeEvent, None]:
    async for event in events:
        yield event
