"""The cells of one pool: who they are, how they are, and how full they are. Pure.

A cell's room is counted as a scheduler does it: the larger of what runs together at the
end (main containers and sidecars) and of what runs together at any init container's turn
(it and the sidecars before it), or the sandbox's own requests where it has them, plus
overhead. A sandbox that has ended for good takes no room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vknode.pool.errors import NO_CAPACITY, REFUSED, UNSUPPORTED_FIELD, PoolFailure
from vknode.pool.quantity import milli
from vknode.pool.runtimes.base import RuntimeInfo
from vknode.pool.v1 import cell_pb2, spec_pb2

# Where a cell does not name these, nobody counts them.
_UNCOUNTED = frozenset({"cpu", "memory", "ephemeral-storage"})


def requests(spec: spec_pb2.SandboxSpec) -> dict[str, int]:
    """What a sandbox asks for, in thousandths. Raises PoolFailure(REFUSED)."""
    total: dict[str, int] = {}
    for index, container in enumerate(spec.containers):
        path = f"containers[{index}].resources.requests"
        _add(total, _amounts(container.resources.requests, path))
    sidecars: dict[str, int] = {}
    most: dict[str, int] = {}
    for index, container in enumerate(spec.init_containers):
        path = f"init_containers[{index}].resources.requests"
        amounts = _amounts(container.resources.requests, path)
        if container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS:
            _add(sidecars, amounts)
            continue
        _add(amounts, sidecars)
        most = {
            name: max(most.get(name, 0), amount) for name, amount in {**most, **amounts}.items()
        }
    _add(total, sidecars)
    for name, amount in most.items():
        total[name] = max(total.get(name, 0), amount)
    total.update(_amounts(spec.resources.requests, "resources.requests"))
    _add(total, _amounts(spec.overhead, "overhead"))
    return total


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def _amounts(quantities: Mapping[str, str], path: str) -> dict[str, int]:
    found = {}
    for name, text in quantities.items():
        try:
            found[name] = milli(text)
        except ValueError as error:
            raise PoolFailure(REFUSED, str(error), field=f'{path}["{name}"]') from error
    return found


@dataclass(slots=True)
class _Room:
    cell: cell_pb2.Cell
    limits: dict[str, int]
    used: dict[str, int] = field(default_factory=dict)
    sandboxes: dict[str, dict[str, int]] = field(default_factory=dict)
    # Whose resize found no room, with the sandbox's priority.
    deferred: dict[str, int] = field(default_factory=dict)


class CellBook:
    """All cells of a pool. `version` rises with every change."""

    def __init__(self, cells: Iterable[cell_pb2.Cell]) -> None:
        """Cells as configured; health and what the runtime is come later. Room is
        counted in `allocatable`, or `capacity` where that is empty; "pods" bounds the
        number of sandboxes. Raises ValueError for a wrong quantity or name."""
        self.version = 1
        self._changed: dict[str, int] = {}
        self._rooms: dict[str, _Room] = {}
        self._where: dict[str, str] = {}
        for given in cells:
            cell = cell_pb2.Cell()
            cell.CopyFrom(given)
            cell.health = cell_pb2.HEALTH_UNHEALTHY
            cell.health_reason = "PoolStarting"
            cell.health_message = "the pool has not reached its runtime yet"
            if not cell.name or len(cell.name) > 63 or cell.name in self._rooms:
                raise ValueError(f"cell name {cell.name!r} is empty, too long or used twice")
            limits = {n: milli(q) for n, q in (cell.allocatable or cell.capacity).items()}
            self._rooms[cell.name] = _Room(cell, limits)
            self._changed[cell.name] = 1
        if not self._rooms:
            raise ValueError("a pool has at least one cell")

    @classmethod
    def of_zone(
        cls,
        zone: str,
        count: int,
        capacity: Mapping[str, str],
        *,
        region: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> CellBook:
        """`count` equal cells ZONE-a, ZONE-b, … ZONE-z, ZONE-aa, … Raises ValueError."""
        return cls(
            cell_pb2.Cell(
                name=f"{zone}-{_letters(index)}",
                zone=zone,
                region=region,
                capacity=capacity,
                labels=labels,
            )
            for index in range(count)
        )

    @property
    def names(self) -> list[str]:
        return list(self._rooms)

    def cells(self, since: int = 0) -> list[cell_pb2.Cell]:
        """Cells that changed after that version; all with 0. Not to be written to."""
        return [r.cell for n, r in self._rooms.items() if self._changed[n] > since]

    def describe(self, info: RuntimeInfo) -> None:
        """What runs the containers, as the runtime tells it."""
        for name, room in self._rooms.items():
            cell = cell_pb2.Cell()
            cell.CopyFrom(room.cell)
            cell.info.CopyFrom(info.node)
            if not cell.info.container_runtime_version:
                cell.info.container_runtime_version = f"{info.scheme}://{info.version}"
            cell.runtime_handlers[:] = [h for h in info.handlers if h]
            self._replace(name, cell)

    def set_health(
        self, healthy: bool, reason: str = "", message: str = "", *, names: Iterable[str] = ()
    ) -> None:
        """For these cells, all where none is named."""
        health = cell_pb2.HEALTH_HEALTHY if healthy else cell_pb2.HEALTH_UNHEALTHY
        if healthy:
            reason = message = ""
        for name in list(names) or self.names:
            cell = cell_pb2.Cell()
            cell.CopyFrom(self._rooms[name].cell)
            cell.health = health
            cell.health_reason = reason or ("" if healthy else "RuntimeUnavailable")
            cell.health_message = message
            self._replace(name, cell)

    def drain(self, names: Collection[str]) -> None:
        """These cells take no new sandbox, all others do. Unknown names mean nothing."""
        for name in self.names:
            cell = cell_pb2.Cell()
            cell.CopyFrom(self._rooms[name].cell)
            cell.draining = name in names
            self._replace(name, cell)

    def _replace(self, name: str, cell: cell_pb2.Cell) -> None:
        if cell != self._rooms[name].cell:
            self._rooms[name].cell = cell
            self.version += 1
            self._changed[name] = self.version

    def admit(self, spec: spec_pb2.SandboxSpec) -> None:
        """Take room for a new sandbox. Raises PoolFailure: REFUSED for an unknown
        cell, UNSUPPORTED_FIELD for a handler, NO_CAPACITY where it does not fit or the
        cell is draining."""
        room = self._rooms.get(spec.cell)
        if room is None:
            raise PoolFailure(
                REFUSED,
                f"this pool has no cell {spec.cell!r}; it has {_some(self.names)}",
                field="cell",
            )
        if spec.runtime_handler and spec.runtime_handler not in room.cell.runtime_handlers:
            raise PoolFailure(
                UNSUPPORTED_FIELD,
                f"cell {spec.cell} has no runtime handler {spec.runtime_handler!r}",
                field="runtime_handler",
            )
        wanted = requests(spec)
        if spec.uid in room.sandboxes:
            return
        if room.cell.draining:
            raise PoolFailure(NO_CAPACITY, f"cell {spec.cell} is being drained", field="cell")
        limit = room.limits.get("pods")
        if limit is not None and len(room.sandboxes) * 1000 >= limit:
            raise PoolFailure(
                NO_CAPACITY, f"cell {spec.cell} is full: it runs {len(room.sandboxes)} sandboxes"
            )
        for name, amount in wanted.items():
            limit = room.limits.get(name)
            if limit is None:
                if name in _UNCOUNTED or not amount:
                    continue
                limit = 0
            if room.used.get(name, 0) + amount > limit:
                raise PoolFailure(
                    NO_CAPACITY,
                    f"cell {spec.cell} has not enough {name}: asked for {_number(amount)}, "
                    f"free {_number(max(0, limit - room.used.get(name, 0)))}",
                )
        self._take(room, spec.uid, wanted)

    def readmit(self, spec: spec_pb2.SandboxSpec) -> None:
        """Room for a sandbox that runs already, even where that is too much."""
        room = self._rooms.get(spec.cell)
        if room is not None and spec.uid not in room.sandboxes:
            try:
                wanted = requests(spec)
            except PoolFailure:
                wanted = {}  # accepted by an earlier version; it counts as one Pod
            self._take(room, spec.uid, wanted)

    def resize(self, spec: spec_pb2.SandboxSpec) -> tuple[str, str]:
        """Take the room that the newer spec of a sandbox asks for, instead of what it has.

        Returns what `fits` says, and only where that is nothing it is done; a sandbox whose
        wish is deferred can be found again with `deferred`."""
        reason, message = self.fits(spec)
        room = self._rooms.get(spec.cell)
        if room is None or spec.uid not in room.sandboxes or reason == "Infeasible":
            return reason, message
        if reason:
            room.deferred[spec.uid] = spec.priority
            return reason, message
        room.deferred.pop(spec.uid, None)
        self.release(spec.uid)
        self._take(room, spec.uid, requests(spec))
        return "", ""

    def fits(self, spec: spec_pb2.SandboxSpec) -> tuple[str, str]:
        """Whether there is the room that the newer spec of a sandbox asks for: a reason and
        a message as in the contract's Resize where not. A sandbox without room of its own
        (it has ended) needs none. Changes nothing."""
        room = self._rooms.get(spec.cell)
        had = room.sandboxes.get(spec.uid) if room is not None else None
        if room is None or had is None:
            return "", ""
        try:
            wanted = requests(spec)
        except PoolFailure as error:
            return "Infeasible", error.message
        for name, amount in wanted.items():
            limit = room.limits.get(name)
            before = had.get(name, 0)
            if limit is None or amount <= before:
                continue
            others = room.used.get(name, 0) - before
            if others + amount > limit:
                return "Deferred", _too_much(name, amount, others, limit)
        return "", ""

    def deferred(self, name: str) -> list[str]:
        """Sandboxes whose resize waits for room, the highest priority first."""
        room = self._rooms.get(name)
        if room is None:
            return []
        return sorted(room.deferred, key=lambda uid: -room.deferred[uid])

    def release(self, uid: str) -> bool:
        """Idempotent; True where room has come free."""
        name = self._where.pop(uid, None)
        if name is None:
            return False
        room = self._rooms[name]
        room.deferred.pop(uid, None)
        for resource, amount in room.sandboxes.pop(uid).items():
            room.used[resource] -= amount
        return True

    def count(self, name: str) -> int:
        """Sandboxes that take room in a cell."""
        return len(self._rooms[name].sandboxes)

    def _take(self, room: _Room, uid: str, wanted: dict[str, int]) -> None:
        room.sandboxes[uid] = wanted
        self._where[uid] = room.cell.name
        for name, amount in wanted.items():
            room.used[name] = room.used.get(name, 0) + amount


def _too_much(name: str, asked: int, used: int, limit: int) -> str:
    """A kubelet's words (pkg/kubelet/lifecycle/predicate.go): cpu in thousandths,
    everything else in units."""
    unit = 1 if name == "cpu" else 1000
    return (
        f"Node didn't have enough resource: {name}, requested: {asked // unit}, "
        f"used: {used // unit}, capacity: {limit // unit}"
    )


def _letters(index: int) -> str:
    """a, b, … z, aa, ab, …"""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _number(thousandths: int) -> str:
    whole, rest = divmod(thousandths, 1000)
    return f"{whole}" if not rest else f"{thousandths}m"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
