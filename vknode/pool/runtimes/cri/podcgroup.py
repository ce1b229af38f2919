"""A control group for each Pod, above its containers': the Pod's limits hold for all of
them together, and for what nobody owns any more (a tmpfs after its writer's end).

As the kubelet's with `cgroupsPerQOS`, but all Pods side by side below one parent: their
shares then weigh as they should without groups of QoS classes above them.

    PARENT/pod<UID>/<container ID>      made here / made by the runtime

Only with the runtime's cgroupfs driver; systemd's wants its own slices. A few writes to
kernel files: quick, and made on the event loop.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Protocol

from vknode.pool.runtimes.cri.layout import safe_name
from vknode.pool.runtimes.cri.resources import CPU_PERIOD, PodLimits

ROOT = Path("/sys/fs/cgroup")
_MOST = 1 << 60
# A limit below what is used, or below a container's.
_TOO_LOW = frozenset({errno.EBUSY, errno.EINVAL})


class _Hierarchy(Protocol):
    """cgroup v1's many trees or v2's one."""

    def make(self, path: str) -> None: ...

    def write(self, path: str, limits: PodLimits, *, lower: bool) -> None:
        """Puts limits in force; with `lower` False only those that are higher now."""
        ...

    def memory(self, path: str) -> tuple[int, int]: ...

    def folders(self, path: str) -> list[Path]:
        """All that may exist of a group."""
        ...


class PodCgroups:
    """`parent` is a path in the cgroup tree, as "/vknode/az1". Where `find` says None the
    Pods have no group of their own. Every method may be repeated."""

    def __init__(self, hierarchy: _Hierarchy, parent: str) -> None:
        self._hierarchy = hierarchy
        self._parent = parent
        self._left: list[Path] = []
        self._in_force: dict[str, PodLimits] = {}

    @classmethod
    def find(cls, parent: str, root: Path = ROOT) -> PodCgroups | None:
        """Where the machine lets us make groups below `parent`."""
        hierarchy: _Hierarchy
        if (root / "cgroup.controllers").is_file():
            hierarchy = _Unified(root)
        elif all((root / name).is_dir() for name in ("cpu", "memory")):
            hierarchy = _Split(root)
        else:
            return None
        try:
            hierarchy.make(parent)
        except OSError:
            return None
        return cls(hierarchy, parent)

    def path(self, uid: str) -> str:
        return f"{self._parent}/pod{safe_name('sandbox UID', uid)}"

    def prepare(self, uid: str, limits: PodLimits) -> None:
        """Before the runtime puts anything into it. Raises OSError."""
        # It may be left of an earlier try: then it is not to go any more.
        mine = self._hierarchy.folders(self.path(uid))
        self._left = [folder for folder in self._left if folder not in mine]
        self._hierarchy.make(self.path(uid))
        self._hierarchy.write(self.path(uid), limits, lower=True)
        self._in_force[uid] = limits

    def raise_limits(self, uid: str, limits: PodLimits) -> None:
        """Those that grow, before the containers' do. Raises OSError."""
        if self._in_force.get(uid) != limits:
            self._in_force.pop(uid, None)
            self._hierarchy.write(self.path(uid), limits, lower=False)

    def settle(self, uid: str, limits: PodLimits) -> None:
        """All of them, after the containers'. One that is too low while another container
        still has more stays as it is. Raises OSError."""
        if self._in_force.get(uid) != limits:
            self._hierarchy.write(self.path(uid), limits, lower=True)

    def memory(self, uid: str) -> tuple[int, int]:
        """What is used and what is the limit (a very high number: none), in bytes. Raises
        OSError."""
        return self._hierarchy.memory(self.path(uid))

    def remove(self, uid: str) -> bool:
        """When nothing runs in it any more. False where it is busy still (the kernel reaps a
        moment later): it goes at the next call."""
        self._in_force.pop(uid, None)
        mine = self._hierarchy.folders(self.path(uid))
        self._left = [
            folder for folder in dict.fromkeys((*self._left, *mine)) if not _rmdir(folder)
        ]
        return not any(folder in self._left for folder in mine)

    def close(self) -> None:
        """The parent goes with its last Pod, and its own parents with it."""
        for folder in self._left:
            _rmdir(folder)
        parts = self._parent.strip("/").split("/")
        for end in range(len(parts), 0, -1):
            for folder in self._hierarchy.folders("/" + "/".join(parts[:end])):
                _rmdir(folder)


class _Split:
    """cgroup v1."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cpu = root / "cpu"
        self._memory = root / "memory"

    def make(self, path: str) -> None:
        for tree in (self._cpu, self._memory):
            (tree / path[1:]).mkdir(parents=True, exist_ok=True)

    def write(self, path: str, limits: PodLimits, *, lower: bool) -> None:
        cpu, memory = self._cpu / path[1:], self._memory / path[1:]
        (cpu / "cpu.shares").write_text(str(limits.cpu_shares))
        quota = -1 if limits.cpu_quota is None else limits.cpu_quota
        _set(cpu / "cpu.cfs_quota_us", quota, _number(cpu / "cpu.cfs_quota_us"), lower=lower)
        limit = -1 if limits.memory is None else limits.memory
        file = memory / "memory.limit_in_bytes"
        _set(file, limit, _number(file), lower=lower)

    def memory(self, path: str) -> tuple[int, int]:
        folder = self._memory / path[1:]
        limit = _number(folder / "memory.limit_in_bytes")
        return _number(folder / "memory.usage_in_bytes"), _MOST if limit < 0 else limit

    def folders(self, path: str) -> list[Path]:
        return [tree / path[1:] for tree in self._root.iterdir() if not tree.is_symlink()]


class _Unified:
    """cgroup v2."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, path: str) -> None:
        folder = self._root
        for part in path[1:].split("/"):
            there = set((folder / "cgroup.controllers").read_text().split())
            wanted = " ".join(f"+{name}" for name in sorted(there))
            (folder / "cgroup.subtree_control").write_text(wanted)
            folder = folder / part
            folder.mkdir(exist_ok=True)

    def write(self, path: str, limits: PodLimits, *, lower: bool) -> None:
        folder = self._root / path[1:]
        # The kubelet's (and runc's) linear way from shares to weights.
        weight = 1 + (limits.cpu_shares - 2) * 9999 // 262142
        (folder / "cpu.weight").write_text(str(weight))
        now = (folder / "cpu.max").read_text().split()[0]
        quota = -1 if limits.cpu_quota is None else limits.cpu_quota
        if lower or _higher(quota, -1 if now == "max" else int(now)):
            (folder / "cpu.max").write_text(f"{quota if quota > 0 else 'max'} {CPU_PERIOD}")
        memory = -1 if limits.memory is None else limits.memory
        now = (folder / "memory.max").read_text().strip()
        if lower or _higher(memory, -1 if now == "max" else int(now)):
            (folder / "memory.max").write_text(str(memory) if memory > 0 else "max")

    def memory(self, path: str) -> tuple[int, int]:
        folder = self._root / path[1:]
        limit = (folder / "memory.max").read_text().strip()
        return _number(folder / "memory.current"), _MOST if limit == "max" else int(limit)

    def folders(self, path: str) -> list[Path]:
        return [self._root / path[1:]]


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _set(file: Path, value: int, now: int, *, lower: bool) -> None:
    if value == now or not (lower or _higher(value, now)):
        return
    try:
        file.write_text(str(value))
    except OSError as error:
        if error.errno not in _TOO_LOW or _higher(value, now):
            raise


def _higher(value: int, now: int) -> bool:
    """-1 is no limit: the highest."""
    return now >= 0 and (value < 0 or value > now)


def _number(file: Path) -> int:
    """cgroup v1 writes no limit of memory as the highest multiple of a page."""
    number = int(file.read_text())
    return -1 if number >= _MOST else number
