"""Hours of a Pod's life on a clock that is stepped: the lifecycle engine over the simulated
runtime of `tests/engine/world.py`, and containers that end by themselves after a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.engine.world import SECOND, START, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.v1 import spec_pb2, status_pb2

#: Of the n-th instance of a container (from 0): how many seconds it lives, and its exit code.
Life = Callable[[int], tuple[float, int]]


def crashes(after: float, code: int = 1) -> Life:
    """Every instance ends like this."""
    return lambda number: (after, code)


@dataclass
class _Registry(World):
    """The simulated runtime with a registry that may be out of order."""

    broken: str = ""  # what every pull is answered, if anything
    pulls: list[int] = field(default_factory=list)

    def carry_out(self, action: steps.Action) -> steps.Event | None:
        if isinstance(action, steps.EnsureImage) and self.broken:
            self.pulls.append(self.now)
            return steps.Failed(action.op, "ErrImagePull", self.broken)
        return super().carry_out(action)


class Hours:
    """One Pod from its beginning. Times are whole seconds since then."""

    def __init__(
        self,
        lives: Mapping[str, Life],
        spec: spec_pb2.SandboxSpec | None = None,
        *,
        broken: str = "",
    ) -> None:
        self.world = _Registry(spec or make_spec(), broken=broken)
        self.began: dict[str, list[int]] = defaultdict(list)
        self._lives = lives
        self._ends: dict[str, tuple[int, int]] = {}  # by instance: when, and with which code
        self._settle()

    @property
    def pulls(self) -> list[int]:
        """When a pull was tried and failed."""
        return [round((at - START) / SECOND) for at in self.world.pulls]

    def registry(self, broken: str = "") -> None:
        """From now on pulls succeed, or are answered with `broken`."""
        self.world.broken = broken

    @property
    def now(self) -> int:
        return round((self.world.now - START) / SECOND)

    def until(self, second: int) -> None:
        """To that second, with everything that happens on the way."""
        target = START + second * SECOND
        self._settle()
        for _ in range(100_000):
            moments = [end for end, _ in self._ends.values()]
            if self.world.machine.wake_at is not None:
                moments.append(self.world.machine.wake_at)
            moment = min(moments, default=target + 1)
            if moment > target:
                self.world.now = max(self.world.now, target)
                return
            self.world.now = max(self.world.now, moment)
            for instance in self.world.running():
                end = self._ends.get(instance.ref.id)
                if end is not None and end[0] <= self.world.now:
                    del self._ends[instance.ref.id]
                    self.world.end(instance, end[1])
            self.world.feed(steps.Tick())
            self._settle()
        raise AssertionError("it never comes to an end")

    def restart_pool(self) -> None:
        """The pool dies and another one adopts what runs."""
        self.world.restart_pool()
        self._settle()

    def told(self, name: str) -> status_pb2.ContainerState:
        """What the status says of a container now."""
        status = self.world.status()
        (found,) = [c for c in (*status.init_containers, *status.containers) if c.name == name]
        return found.state

    def reason(self, name: str) -> str:
        """Why it waits; empty where it does not."""
        return self.told(name).waiting.reason

    def _settle(self) -> None:
        self.world.settle()
        for instance in self.world.running():
            name = instance.ref.name
            if instance.ref.id not in self._ends and name in self._lives:
                seconds, code = self._lives[name](len(self.began[name]))
                self.began[name].append(self.now)
                end = instance.started_at + round(seconds * SECOND)
                self._ends[instance.ref.id] = end, code
