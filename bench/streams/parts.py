"""The questions, one function each. All return figures and count what was cut short."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.streams.clients import Door, Download, StreamBroken, download, remote, run

TRUE = "/bin/true"
#: Sessions that are opened at the same time; all stay open.
OPENING = 16
_SESSION_SAYS = 64


Figures = dict[str, dict[str, object]]


@dataclass
class Tally:
    """What was cut short, over all parts, with the first few reasons."""

    truncations: int = 0
    reasons: list[str] = field(default_factory=list)

    def cut(self, reason: str) -> None:
        self.truncations += 1
        if len(self.reasons) < 5:
            self.reasons.append(reason)


class Text:
    """What a container writes: the same line of 256 bytes again and again, after a first."""

    FIRST = b"ready\n"
    LINE = b"x" * 255 + b"\n"

    def __init__(self, size: int) -> None:
        """`size` in bytes, rounded down to whole lines."""
        self.lines = size // len(self.LINE)
        self.count = len(self.FIRST) + self.lines * len(self.LINE)
        digest = hashlib.sha256(self.FIRST)
        block = self.LINE * 4096
        for _ in range(self.lines // 4096):
            digest.update(block)
        digest.update(self.LINE * (self.lines % 4096))
        self.digest = digest.hexdigest()

    def write(self, file: Path) -> None:
        with file.open("wb") as out:
            out.write(self.FIRST)
            for _ in range(self.lines // 4096):
                out.write(self.LINE * 4096)
            out.write(self.LINE * (self.lines % 4096))

    def script(self, then: str) -> str:
        """A shell script that says the first line, waits for the file /tmp/go, and says all."""
        line = self.LINE.decode().strip()
        return (
            "echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; "
            f"yes {line} | head -n {self.lines}; {then}"
        )

    def same(self, found: Download, what: str, tally: Tally) -> bool:
        if (found.count, found.digest) == (self.count, self.digest):
            return True
        tally.cut(f"{what} had {found.count} of {self.count} bytes, or others")
        return False


async def alternate(ways: Mapping[str, Callable[[], Awaitable[float]]], times: int) -> Figures:
    """Each way so often, in turns, so that a machine that gets slower meets all; two rounds
    before are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times + 2):
        for name, way in ways.items():
            took = await way()
            if number > 1:
                seconds[name].append(1000 * took)
    return {
        name: {
            "p50": round(statistics.median(found), 1),
            "spread": [round(q, 1) for q in _quartiles(found)],
        }
        for name, found in seconds.items()
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


async def exec_true(door: Door) -> float:
    """Seconds of one `/bin/true`, the connection included."""
    return await run(door, TRUE)


async def go(door: Door) -> None:
    """Lets a container of `Text.script` write."""
    await run(door, "touch", "/tmp/go")


async def sessions_at_once(
    door: Door, count: int, tally: Tally, mib: Callable[[], float]
) -> dict[str, float]:
    """Opens `count` sessions of `cat`, says something of its own to each while all are open,
    wants it back, and ends them. Returns how many did all of that, seconds, and `mib` while
    all were open."""
    opening = asyncio.Semaphore(OPENING)
    everybody = asyncio.Event()
    left = count
    good = 0

    async def one(number: int) -> None:
        nonlocal left, good
        word = f"{number:0{_SESSION_SAYS - 1}d}\n".encode()
        counted = False
        try:
            async with opening:
                context = remote(door, "cat", stdin=True)
                session = await context.__aenter__()
            try:
                await session.write(word)
                await session.read_until(len(word))
                counted = True
                left -= 1
                if left == 0:
                    everybody.set()
                await everybody.wait()
                await session.write(word)
                await session.read_until(2 * len(word))
                await session.close_stdin()
                if await session.exit_code() == 0 and bytes(session.output) == 2 * word:
                    good += 1
                else:
                    tally.cut(f"session {number} had {len(session.output)} bytes")
            finally:
                await context.__aexit__(None, None, None)
        except (StreamBroken, aiohttp.ClientError, OSError, TimeoutError) as error:
            tally.cut(f"session {number}: {type(error).__name__} {error}")
        finally:
            if not counted:
                left -= 1
                if left == 0:
                    everybody.set()

    started = time.perf_counter()
    async with asyncio.timeout(600):
        tasks = [asyncio.create_task(one(number)) for number in range(count)]
        await everybody.wait()
        memory = mib()
        await asyncio.gather(*tasks)
    return {"open": good, "seconds": round(time.perf_counter() - started, 1), "mib": memory}


async def follow(
    door: Door,
    count: int,
    text: Text,
    go: Callable[[], Awaitable[object]],
    tally: Tally,
    mib: Callable[[], float],
) -> dict[str, float]:
    """`count` followers of one log. Once each has its first line, `go` lets the container
    write the rest and end; every one must get all of it."""
    everybody = asyncio.Event()
    there: set[int] = set()

    async def one(number: int) -> bool:
        def arrived() -> None:
            there.add(number)
            if len(there) == count:
                everybody.set()

        try:
            found = await download(door.session, door.logs_url(follow="true"), arrived)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            tally.cut(f"follower {number}: {type(error).__name__} {error}")
            return False
        finally:
            arrived()  # one that failed is not waited for
        return text.same(found, f"follower {number}", tally)

    started = time.perf_counter()
    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    async with asyncio.timeout(600):
        await everybody.wait()
        opened = time.perf_counter()
        memory = mib()
        await go()
        whole = sum(await asyncio.gather(*tasks))
    return {
        "whole": whole,
        "open_s": round(opened - started, 1),
        "served_s": round(time.perf_counter() - opened, 1),
        "mib": memory,
    }


async def logs(ways: Mapping[str, Door], text: Text, tally: Tally, rounds: int) -> Figures:
    """MiB of text a second of a whole log, each way in turns; the first is the floor."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, door in ways.items():
            found = await download(door.session, door.logs_url())
            text.same(found, f"log of {name}", tally)
            rates[name].append(found.mib_per_second)
    floor = statistics.median(next(iter(rates.values())))
    return {
        name: {
            "mib_per_s": round(statistics.median(found), 1),
            "spread": [round(min(found), 1), round(max(found), 1)],
            "ratio": round(statistics.median(found) / floor, 3),
        }
        for name, found in rates.items()
    }
