"""From measurements to what a kubelet reports: the present use, and totals that never fall. Pure.

Theory of operation. A pool tells counters, and nobody asks it unless somebody asks us. So the
present use of a container (cores) is the growth of its counter since an earlier measurement: the
youngest one that is at least `SPAN` old, however often somebody asks in between; where there is
none yet, since the oldest that is known, which at first is the container's start, when every
counter is 0. After a pause of an hour the first answer is therefore the mean of that hour.

Pods and nodes are sums over things that come and go. A sum of counters falls when one of them
ends, and a reader takes that for a restart of the node (metrics-server drops the measurement). So
a sum here adds up growth: what has ended stays in, and a counter that begins anew counts from
there. A counter that falls without a reason (a pool that lost its memory) adds nothing once.

Memory: a few numbers a container, forgotten with its Pod.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vknode.kubeletapi.usage import ContainerUsage, NodeUsage, PodUsage

SECOND = 1_000_000_000
# At least so long before now began what is called the present use.
SPAN = 5 * SECOND
# No two measurements are kept that are nearer to each other, and no present use is told of less:
# what a container's first moment costs is not what it goes on to use.
_STEP = SECOND


class Cpu(NamedTuple):
    """CPU of something at a moment: nanoseconds of one core since its start, and billionths of a
    core that it uses at present (None: not known yet)."""

    at: int
    total: int
    nano_cores: int | None


class CpuWindow:
    """The last measurements of one counter."""

    def __init__(self, started: int | None) -> None:
        self.started = started
        self._kept: list[tuple[int, int]] = [] if started is None else [(started, 0)]
        self._rate: int | None = None

    def add(self, at: int, total: int) -> int | None:
        """Takes in a measurement and returns the present use."""
        kept = self._kept
        if kept and total < kept[-1][1]:
            kept.clear()  # a counter that began anew
        old = [index for index, (then, _) in enumerate(kept) if at - then >= SPAN]
        if old:
            del kept[: old[-1]]
        if kept and at - kept[0][0] >= _STEP:
            then, before = kept[0]
            self._rate = (total - before) * SECOND // (at - then)
        if not kept or at - kept[-1][0] >= _STEP:
            kept.append((at, total))
        return self._rate

    def __len__(self) -> int:
        return len(self._kept)


class Sum:
    """A counter over counters that come and go."""

    def __init__(self) -> None:
        self.total = 0
        self._last: dict[Hashable, tuple[Hashable, int]] = {}

    def add(
        self, counters: Mapping[Hashable, tuple[Hashable, int]], living: Collection[Hashable]
    ) -> int:
        """`counters`: each with what tells its lives apart (a start time) and its value. What is
        neither among them nor `living` is forgotten, its growth stays."""
        for key, (life, value) in counters.items():
            known_life, before = self._last.get(key, (life, 0))
            self.total += value if known_life != life else max(0, value - before)
            self._last[key] = life, value
        for key in [key for key in self._last if key not in counters and key not in living]:
            del self._last[key]
        return self.total


@dataclass
class _PodHistory:
    sum: Sum = field(default_factory=Sum)
    window: CpuWindow | None = None
    containers: dict[str, CpuWindow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """A measurement with what the history makes of it. `pods` is by UID, `containers` by UID and
    name; `since` is when the node's sums began, in ns."""

    usage: NodeUsage
    since: int
    node: Cpu
    pods: Mapping[str, Cpu]
    containers: Mapping[tuple[str, str], Cpu]


class UsageHistory:
    """One node's."""

    def __init__(self) -> None:
        self._pods: dict[str, _PodHistory] = {}
        self._sum = Sum()
        self._at = 0
        self._since = 0

    def take(self, usage: NodeUsage) -> Report:
        """Measurements come in the order in which they were made."""
        self._since = self._since or usage.at
        pods: dict[str, Cpu] = {}
        containers: dict[tuple[str, str], Cpu] = {}
        for pod in usage.pods:
            history = self._pods.setdefault(pod.uid, _PodHistory())
            own = {one.name: _container(history, one) for one in pod.containers}
            containers.update(((pod.uid, name), cpu) for name, cpu in own.items())
            if (cpu := _pod(history, pod, own)) is not None:
                pods[pod.uid] = cpu
        for uid in [uid for uid in self._pods if uid not in pods and uid not in usage.living]:
            del self._pods[uid]
        total = self._sum.add({uid: (0, cpu.total) for uid, cpu in pods.items()}, usage.living)
        # Without Pods nothing is measured, and that is so at the moment of asking.
        self._at = max(self._at, *(cpu.at for cpu in pods.values())) if pods else usage.at
        rates = [cpu.nano_cores for cpu in pods.values() if cpu.nano_cores is not None]
        node = Cpu(self._at, total, sum(rates) if rates or not pods else None)
        return Report(usage, self._since, node, pods, containers)


def _container(history: _PodHistory, one: ContainerUsage) -> Cpu:
    window = history.containers.get(one.name)
    if window is None or window.started != one.started:
        window = history.containers[one.name] = CpuWindow(one.started)
    return Cpu(one.usage.at, one.usage.cpu, window.add(one.usage.at, one.usage.cpu))


def _pod(history: _PodHistory, pod: PodUsage, own: Mapping[str, Cpu]) -> Cpu | None:
    if pod.usage is not None:
        if history.window is None:
            history.window = CpuWindow(pod.started)
        at, total = pod.usage.at, pod.usage.cpu
        return Cpu(at, total, history.window.add(at, total))
    if not own:
        return None
    starts = {one.name: one.started for one in pod.containers}
    names: Collection[Hashable] = history.containers.keys()
    total = history.sum.add({n: (starts[n], cpu.total) for n, cpu in own.items()}, names)
    rates = [cpu.nano_cores for cpu in own.values() if cpu.nano_cores is not None]
    at = max(cpu.at for cpu in own.values())
    return Cpu(at, total, sum(rates) if rates else None)
