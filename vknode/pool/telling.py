"""From machines to the journal: each change once, and the way to a start as one.

Changes of one turn of the loop are put together. What only leads up to a first start
(`leading_up`) is held back for `QUIET_SECONDS`, so that a quick start is one change;
`settle` puts it in at once, for a watch that begins: no snapshot may lack a sandbox.
"""

from __future__ import annotations

import asyncio

from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.journal import Journal
from vknode.pool.v1 import status_pb2

# A watcher hears of the way to a start after this many seconds at the latest.
QUIET_SECONDS = 0.1


class Teller:
    """Feeds one journal. Needs a running loop."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._told: dict[str, int] = {}  # UID: the machine's version in the journal
        self._dirty: dict[str, SandboxMachine] = {}
        self._held: dict[str, SandboxMachine] = {}
        self._flush: asyncio.Handle | None = None
        self._quiet: asyncio.TimerHandle | None = None

    def changed(self, machine: SandboxMachine) -> None:
        """Something may have changed; it is told at the end of this turn of the loop."""
        if self._told.get(machine.uid) != machine.version:
            self._dirty[machine.uid] = machine
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_soon(self._tell_dirty)

    def event(self, event: status_pb2.SandboxEvent) -> None:
        """Warnings at once, normal events with the next change or soon."""
        quiet = event.type == "Normal"
        self.journal.event(event, quiet=quiet)
        if quiet:
            self._soon()

    def gone(self, machine: SandboxMachine) -> None:
        """The last word on a sandbox."""
        self._dirty.pop(machine.uid, None)
        self._held.pop(machine.uid, None)
        status = machine.status()
        if self._told.pop(machine.uid, 0) == 0:  # it must be told as gone all the same
            self.journal.put(status, quiet=True)
        self.journal.remove(status)

    def settle(self) -> None:
        """Everything known is in the journal now."""
        self._tell_dirty()
        self._tell_held()

    def close(self) -> None:
        for handle in (self._flush, self._quiet):
            if handle is not None:
                handle.cancel()

    def _tell_dirty(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        dirty, self._dirty = self._dirty, {}
        told = False
        for uid, machine in dirty.items():
            status = machine.status()
            if leading_up(status):
                self._held[uid] = machine
                self._soon()
                continue
            self._held.pop(uid, None)
            self._put(machine)
            told = True
        if told:
            self.journal.wake()

    def _tell_held(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        held, self._held = self._held, {}
        for machine in held.values():
            self._put(machine)
        self.journal.wake()

    def _put(self, machine: SandboxMachine) -> None:
        self._told[machine.uid] = machine.version
        self.journal.put(machine.status(), quiet=True)

    def _soon(self) -> None:
        if self._quiet is None:
            loop = asyncio.get_running_loop()
            self._quiet = loop.call_later(QUIET_SECONDS, self._tell_held)


def leading_up(status: status_pb2.Sandbox) -> bool:
    """Only on the way to a first start, with nothing a user would want to act on."""
    if status.deleting or status.state > status_pb2.SANDBOX_STATE_STARTING or status.reason:
        return False
    return all(
        container.state.waiting.reason in ("ContainerCreating", "PodInitializing")
        for group in (status.init_containers, status.containers)
        for container in group
    )
