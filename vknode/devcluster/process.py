"""A child process of the development cluster: started, watched, ended.

| state    | meaning                              | leaves by                         |
|----------|--------------------------------------|-----------------------------------|
| new      | not started                          | `start` → running                 |
| running  | its exit would be a crash            | exit → dead (reported), `stop`    |
| stopping | we asked it to end, or will kill it  | exit → dead (not reported)        |
| dead     | gone; may be started again           | `start` → running                 |

Children write straight into their log file: nothing of ours stands between, so
a busy event loop never blocks one, and the log outlives us. The kernel kills
them when we die (parent-death signal), even by SIGKILL; what *they* leave behind
then (containers) is `sweep`'s to clear.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# We may have died before the signal for that was set: then there is another parent.
_UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'


class State(enum.Enum):
    """See the table above."""

    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass(frozen=True)
class Crash:
    """A child that ended without being asked to."""

    name: str
    returncode: int
    log: Path
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        how = f"exited with status {self.returncode}"
        if self.returncode < 0:
            how = f"was killed by {_signal_name(-self.returncode)}"
        lines = "".join(f"\n    {line}" for line in self.last_lines)
        return f"{self.name} {how}; the end of its log {self.log}:{lines or ' (empty)'}"


class ChildFailed(Exception):
    """A child ended, or did not become ready, while the cluster was starting."""


def process_start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None if it
    is gone. With the pid it identifies a process for good: pids are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def log_tail(path: Path, lines: int = 8, width: int = 400) -> tuple[str, ...]:
    """The last lines of a log, shortened to `width` characters each."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 64 * 1024))
            text = log.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line[:width] for line in text.splitlines()[-lines:])


class Child:
    """One child process. `on_crash` is called from the event loop, once per crash."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        on_crash: Callable[[Crash], None] | None = None,
        on_start: Callable[[Child], None] | None = None,
    ) -> None:
        self.name = name
        self.argv = [str(part) for part in argv]
        self.log = log
        self.state = State.NEW
        self._environment = dict(os.environ if environment is None else environment)
        self._folder = folder
        self._on_crash = on_crash
        self._on_start = on_start
        self._process: asyncio.subprocess.Process | None = None
        self._reaper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError if it is not running."""
        if self._process is None or self.state is State.DEAD:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs and is meant to."""
        return self.state is State.RUNNING

    async def start(self) -> None:
        """Start it. Raises ChildFailed if it cannot be executed at all."""
        if self.state in (State.RUNNING, State.STOPPING):
            raise RuntimeError(f"{self.name} is already running")
        if shutil.which(self.argv[0]) is None:
            raise ChildFailed(f"cannot start {self.name}: {self.argv[0]} is no program")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # setpriv (util-linux) rather than preexec_fn: running Python between fork and
        # exec is unsafe in a process with threads. It execs, so the pid is the child's.
        setpriv = shutil.which("setpriv")
        wrapper = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        wrapper += ["/bin/sh", "-c", _UNLESS_ORPHANED, str(os.getpid())]
        try:
            with self.log.open("ab") as out:
                self._process = await asyncio.create_subprocess_exec(
                    *wrapper,
                    *self.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self._folder,
                    env=self._environment,
                    # Ctrl-C on the terminal must reach us alone: we end children in order.
                    start_new_session=True,
                )
        except OSError as problem:
            raise ChildFailed(f"cannot start {self.name} ({self.argv[0]}): {problem}") from problem
        self.state = State.RUNNING
        self._reaper = asyncio.create_task(self._reap(self._process), name=f"reap {self.name}")
        if self._on_start is not None:
            self._on_start(self)

    async def wait(self) -> int:
        """Wait until it is gone; the exit status, negative for a signal."""
        if self._process is None or self._reaper is None:
            raise RuntimeError(f"{self.name} was never started")
        await asyncio.shield(self._reaper)
        assert self._process.returncode is not None
        return self._process.returncode

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs (SIGSTOP and SIGCONT are not its end)."""
        if self._process is not None and self.state in (State.RUNNING, State.STOPPING):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, grace: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds; returns when it is gone."""
        if self.state is State.RUNNING:
            self.state = State.STOPPING
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a stopped process would not see the SIGTERM
        if self.state is State.STOPPING:
            try:
                async with asyncio.timeout(grace):
                    await self.wait()
            except TimeoutError:
                await self.kill()

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone. Not reported as a crash."""
        if self.state in (State.RUNNING, State.STOPPING):
            self.state = State.STOPPING
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        returncode = await process.wait()
        crashed = self.state is State.RUNNING
        self.state = State.DEAD
        if crashed and self._on_crash is not None:
            self._on_crash(Crash(self.name, returncode, self.log, log_tail(self.log)))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
