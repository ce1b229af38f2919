"""`vknode pool` as a child process, as an operator runs it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

READY_SECONDS = 90.0


class PoolProcess:
    """A started pool. `log` holds every line it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._lines = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._lines:
                text = line.decode(errors="replace").rstrip()
                self.raw.append(text)
                if text.startswith("{"):
                    self.log.append(json.loads(text))
                self._lines.notify_all()
        async with self._lines:
            self._lines.notify_all()

    async def event(self, name: str, timeout: float = READY_SECONDS) -> dict[str, Any]:
        """The first log line with this event. Fails with the whole log."""

        def found() -> dict[str, Any] | None:
            return next((entry for entry in self.log if entry.get("event") == name), None)

        try:
            async with asyncio.timeout(timeout), self._lines:
                await self._lines.wait_for(lambda: found() or self.process.stderr.at_eof())  # type: ignore[union-attr]  # it is a pipe
        except TimeoutError:
            pass
        entry = found()
        assert entry is not None, f"no {name} within {timeout:g} s: " + "\n".join(self.raw)
        return entry

    async def end(self, number: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Its exit code after a signal."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), timeout)
        await self._reading
        return code


@asynccontextmanager
async def pool_process(folder: Path, *options: str) -> AsyncIterator[PoolProcess]:
    """A pool at `folder/pool.sock` that is ended afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vknode",
        "pool",
        *("--zone", "az1", "--cells", "2"),
        *("--listen", f"unix:{folder}/pool.sock"),
        *("--state-dir", str(folder / "state")),
        *options,
        stderr=asyncio.subprocess.PIPE,
    )
    pool = PoolProcess(process)
    try:
        yield pool
    finally:
        if process.returncode is None:
            await pool.end(signal.SIGKILL)


async def vknode(*arguments: str, timeout: float = 200.0) -> tuple[int, str, str]:
    """Exit code, output and errors of one command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vknode",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
