"""What all scenarios of one run share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.scenarios.api import Api
from tests.scenarios.history import History
from tests.support.kube import Kube


@dataclass(frozen=True)
class Stage:
    """`target` is `kubelet` or `vknode`; `node` a node's name; `registry` the host and port of
    an image registry that the nodes reach, `digest` of its image open/exact."""

    target: str
    api: Api
    history: History
    kube: Kube
    node: str
    registry: str
    digest: str
    faults: Faults


Act = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Fault:
    """What a scenario wants of a fault; `before` is done just before the kill, `meanwhile` while
    the part is away, which it is for at least `away` seconds."""

    kill: str
    away: float
    before: Act
    meanwhile: Act


@dataclass
class _Gate:
    """A point that nobody passes before all have come to it."""

    here: set[str] = field(default_factory=set)
    passed: bool = False


class Faults:
    """Breaks the agent or a pool once for all scenarios of a group that want it.

    A fault waits until every scenario of the group has come to its next one or has ended; then
    their `before` steps run side by side, the part is killed, their `meanwhile` steps run, and
    the part is started again. So a whole group costs one kill, and whoever runs alone has it
    at once.
    """

    def __init__(self, levers: dict[str, tuple[Act, Act]] | None = None) -> None:
        self._levers = levers or {}
        self._to_come: dict[str, int] = {}
        self._gates: dict[tuple[int, str], _Gate] = {}
        self._changed = asyncio.Condition()
        self._round = 0
        self._away = 0.0
        self._broken: BaseException | None = None

    def expect(self, name: str, faults: int) -> None:
        """A scenario that will come to so many faults."""
        self._to_come[name] = faults

    async def leave(self, name: str) -> None:
        """The scenario has ended: nobody waits for it any more."""
        async with self._changed:
            self._to_come.pop(name, None)
            self._changed.notify_all()

    async def meet(self, name: str, fault: Fault) -> None:
        """Have the fault together with the others; returns when it is over.

        Raises what the steps raise, and RuntimeError where there is no such lever or the fault
        itself failed."""
        if fault.kill not in self._levers:
            raise RuntimeError(f"this target has no {fault.kill} that could be killed")
        break_it, mend = self._levers[fault.kill]
        round_ = self._round
        self._away = max(self._away, fault.away)

        async def end() -> None:
            await asyncio.sleep(self._away - (time.monotonic() - killed))
            await mend()
            self._round, self._away = round_ + 1, 0.0
            for one in self._gates[round_, "killed"].here & self._to_come.keys():
                self._to_come[one] -= 1

        await self._together((round_, "come"), name)
        await fault.before()
        await self._together((round_, "killed"), name, break_it)
        killed = time.monotonic()
        try:
            await fault.meanwhile()
        finally:
            await self._together((round_, "mended"), name, end)

    async def _together(self, where: tuple[int, str], name: str, act: Act | None = None) -> None:
        """Wait for all who are still to come; one of them does `act` before anybody goes on."""
        async with self._changed:
            gate = self._gates.setdefault(where, _Gate())
            gate.here.add(name)
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: (
                    gate.passed
                    or gate.here >= {one for one, left in self._to_come.items() if left > 0}
                )
            )
            if not gate.passed:
                gate.passed = True
                try:
                    if act is not None:
                        await act()
                except Exception as problem:
                    self._broken = problem
                self._changed.notify_all()
        if self._broken is not None:
            raise RuntimeError(f"the fault itself failed: {self._broken}")
