"""The state directory of a development cluster: who holds it, and what it has made.

One live process holds `lock` (an flock, gone with the process). `run.json` is
written *before* anything outside the directory is made (processes, bridges,
firewall rules), so that after a SIGKILL a sweep knows what to clear. Processes
are recorded with their start time: a pid alone may by then be somebody else's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vknode.devcluster.mounts import remove_tree
from vknode.devcluster.process import process_start_time

#: sun_path is 108 bytes with its final NUL; the longest socket below the state
#: directory is `run/zones/NAME/containerd.sock.ttrpc`.
LONGEST_SOCKET = 107
#: Bytes. A cluster with a few images and logs stays below it.
DISK_NEEDED = 1 << 30


class StateInUse(Exception):
    """Another live process holds the state directory."""


class StateUnusable(Exception):
    """The state directory cannot be used; the text says why and what to do."""


def default_state_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$VKNODE_DEV_STATE`, else `$XDG_STATE_HOME/vknode/dev`, else ~/.local/state/vknode/dev."""
    env = os.environ if environment is None else environment
    chosen = env.get("VKNODE_DEV_STATE")
    if chosen:
        return Path(chosen)
    base = env.get("XDG_STATE_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / "vknode" / "dev"


def boot_id() -> str:
    """This boot's id: records of an earlier boot name nothing that still exists."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass
class Process:
    """A process on record. `start_time` is in clock ticks since boot."""

    name: str
    pid: int
    start_time: int

    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return process_start_time(self.pid) == self.start_time


@dataclass
class ZoneRecord:
    """What one zone has outside its folder."""

    name: str
    folder: str
    network: str  # the CNI network's name, also in libcni's result cache
    bridge: str


@dataclass
class RunRecord:
    """What one run of a cluster has made outside its state directory."""

    boot: str
    owner: Process
    processes: list[Process] = field(default_factory=list)
    zones: list[ZoneRecord] = field(default_factory=list)
    #: The comment that marks our firewall rules; "" if none were made.
    firewall_mark: str = ""

    @classmethod
    def parse(cls, text: str) -> RunRecord:
        """Raises ValueError for what is not a record."""
        try:
            raw: dict[str, Any] = json.loads(text)
            return cls(
                boot=raw["boot"],
                owner=Process(**raw["owner"]),
                processes=[Process(**one) for one in raw["processes"]],
                zones=[ZoneRecord(**one) for one in raw["zones"]],
                firewall_mark=raw["firewall_mark"],
            )
        except (KeyError, TypeError) as problem:
            raise ValueError(f"not a run record: {problem}") from problem

    def dump(self) -> str:
        """The record as JSON."""
        return json.dumps(asdict(self), indent=1)


class StateDir:
    """A state directory; `acquire` before anything else is made in it."""

    def __init__(self, path: Path) -> None:
        # Resolved, because mountinfo names mounts by their real path.
        self.path = path.resolve()
        self._lock: int | None = None
        # The record is written from the event loop (children) and from threads (networks).
        self._writing = threading.Lock()
        self.record: RunRecord | None = None

    @property
    def run_file(self) -> Path:
        """Where the run record is."""
        return self.path / "run.json"

    @property
    def run(self) -> Path:
        """Where a run keeps its data; gone with it."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """Where the children's logs are; kept until the next run."""
        return self.path / "logs"

    @property
    def kubeconfig(self) -> Path:
        """Where the administrator's kubeconfig is while the cluster runs."""
        return self.path / "kubeconfig"

    @property
    def control_socket(self) -> Path:
        """Where a live `vknode dev` listens for `fault`, `status` and `stop`."""
        return self.path / "control.sock"

    def check(self, zones: tuple[str, ...] = ()) -> None:
        """Refuse early what would fail half-way. Raises StateUnusable."""
        longest = max((len(name) for name in zones), default=0)
        socket = len(os.fsencode(self.path)) + len("/run/zones//containerd.sock.ttrpc") + longest
        if socket > LONGEST_SOCKET:
            raise StateUnusable(
                f"the state directory's path is too long for Unix sockets by "
                f"{socket - LONGEST_SOCKET} bytes: {self.path}; choose a shorter --state-dir"
            )
        try:
            # A folder that was there keeps its mode: what is secret lies in `run`, which
            # is made 0700, and in files of mode 0600.
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.path).free
        except OSError as problem:
            raise StateUnusable(
                f"cannot use the state directory {self.path}: {problem.strerror}; "
                "choose another with --state-dir"
            ) from problem
        if free < DISK_NEEDED:
            raise StateUnusable(
                f"only {free >> 20} MiB are free where {self.path} is, and a development cluster "
                f"needs {DISK_NEEDED >> 20}: make room, or choose another disk with --state-dir"
            )

    def acquire(self) -> None:
        """Become the directory's one live process. Raises StateInUse naming the holder."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            holder = self.load()
            who = f" (pid {holder.owner.pid})" if holder else ""
            raise StateInUse(
                f"a development cluster{who} already runs in {self.path}: stop it with "
                f"`vknode dev stop --state-dir {self.path}`, or choose another --state-dir"
            ) from None
        self._lock = handle

    def release(self) -> None:
        """Let the next one have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def held(self) -> bool:
        """Whether any live process (we included) holds the directory."""
        if self._lock is not None:
            return True
        try:
            self.acquire()
        except StateInUse:
            return True
        self.release()
        return False

    def load(self) -> RunRecord | None:
        """The record of the last run, if there is one. A torn or foreign file is none:
        writes are atomic, so it cannot be ours."""
        try:
            return RunRecord.parse(self.run_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def begin(self) -> RunRecord:
        """Start a new run's record, with this process as its owner."""
        me = os.getpid()
        started = process_start_time(me)
        assert started is not None
        self.record = RunRecord(boot=boot_id(), owner=Process("vknode dev", me, started))
        self.save()
        return self.record

    def save(self) -> None:
        """Write the record, atomically. Raises OSError (a full disk) before anything
        that it announces has been made."""
        with self._writing:
            self._save()

    def _save(self) -> None:
        assert self.record is not None
        fresh = self.run_file.with_suffix(".new")
        fresh.write_text(self.record.dump())
        fresh.replace(self.run_file)

    def add_process(self, name: str, pid: int) -> None:
        """Put a child on record."""
        started = process_start_time(pid)
        if started is None:
            return  # gone already
        with self._writing:
            assert self.record is not None
            self.record.processes = [p for p in self.record.processes if p.alive()]
            self.record.processes.append(Process(name, pid, started))
            self._save()

    def add_zones(self, zones: list[ZoneRecord], firewall_mark: str) -> None:
        """Put what zones will have outside the directory on record, before it exists."""
        with self._writing:
            assert self.record is not None
            self.record.zones += zones
            self.record.firewall_mark = firewall_mark
            self._save()

    def clear(self) -> list[str]:
        """Forget the run and its data; returns what could not be removed.

        Removes only what a cluster has made, so that a --state-dir with other things in
        it keeps them; the logs stay for whoever asks what happened."""
        left = remove_tree(self.run)
        for path in (self.run_file, self.control_socket, self.kubeconfig):
            path.unlink(missing_ok=True)
        self.record = None
        return left
