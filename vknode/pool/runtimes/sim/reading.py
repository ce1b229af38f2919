"""Reading a simulated container's log: tail, since, limit, follow; and attaching."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.sim.logs import (
    End,
    Line,
    format_line,
    moments,
)
from vknode.pool.runtimes.sim.model import SimContainer
from vknode.pool.runtimes.sim.shell import CHUNK, Program, World

Fresh = Callable[[], tuple[Program, World]]

_BREATH = 2000  # lines between two turns of the event loop


def _limit(container: SimContainer) -> float:
    """How far the log goes now: seconds since the start."""
    if container.exit is not None:
        return (container.exit.finished_at - container.started_at) / 1e9
    return (time.time_ns() - container.started_at) / 1e9


async def read_log(
    container: SimContainer, fresh: Fresh, options: LogOptions, ended: asyncio.Event
) -> AsyncIterator[bytes]:
    """The log as `Runtime.logs` gives it."""
    left = options.limit_bytes
    async for piece in _unlimited(container, fresh, options, ended):
        if left is not None:
            piece = piece[:left]
            left -= len(piece)
        if piece:
            yield piece
        if left == 0:
            return


async def _unlimited(
    container: SimContainer, fresh: Fresh, options: LogOptions, ended: asyncio.Event
) -> AsyncIterator[bytes]:
    skip = await _lines_to_skip(container, fresh, options)
    program, world = fresh()
    buffer = bytearray()
    count = 0
    for moment in moments(program, world, stdin=container.spec.stdin):
        if isinstance(moment, Line):
            count += 1
            if count % _BREATH == 0:
                await asyncio.sleep(0)
            if moment.offset > _limit(container):
                break  # killed before it could print this
            text = format_line(moment, container.started_at, options)
            if text is None:
                continue
            if skip:
                skip -= 1
                continue
            buffer += text
            while len(buffer) >= CHUNK:
                yield bytes(buffer[:CHUNK])
                del buffer[:CHUNK]
        elif isinstance(moment, float):
            if moment <= _limit(container):
                continue  # the past
            if buffer:
                yield bytes(buffer)
                buffer.clear()
            if not options.follow or not await _wait_until(container, moment, ended):
                return
        else:
            break
    if buffer:
        yield bytes(buffer)
    if options.follow:
        await ended.wait()


async def _wait_until(container: SimContainer, offset: float, ended: asyncio.Event) -> bool:
    """False: the container ended before that moment."""
    # The loop's clock and the time of day do not run quite alike: a timer may be a little early.
    while (delay := offset - (time.time_ns() - container.started_at) / 1e9) > 0:
        try:
            async with asyncio.timeout(None if delay > 1e8 else max(delay, 0.001)):
                await ended.wait()
        except TimeoutError:
            continue
        break
    return offset <= _limit(container)


async def _lines_to_skip(container: SimContainer, fresh: Fresh, options: LogOptions) -> int:
    """How many lines stand before the asked tail."""
    if options.tail_lines is None:
        return 0
    tail: collections.deque[None] = collections.deque(maxlen=max(options.tail_lines, 0))
    program, world = fresh()
    limit = _limit(container)
    skip = count = 0
    for moment in moments(program, world, stdin=container.spec.stdin):
        offset = moment if isinstance(moment, float) else moment.offset
        if offset > limit or isinstance(moment, End):
            break
        if isinstance(moment, Line):
            count += 1
            if count % _BREATH == 0:
                await asyncio.sleep(0)
            if format_line(moment, container.started_at, options) is not None:
                if len(tail) == tail.maxlen:
                    skip += 1
                else:
                    tail.append(None)
    return skip


async def follow_lines(
    container: SimContainer, fresh: Fresh, ended: Callable[[], Awaitable[None]]
) -> AsyncIterator[tuple[int, bytes]]:
    """What the container prints from now on, as an attached client sees it."""
    over = asyncio.Event()
    waiting = asyncio.ensure_future(ended())
    waiting.add_done_callback(lambda _: over.set())
    program, world = fresh()
    now = _limit(container)
    try:
        for moment in moments(program, world, stdin=container.spec.stdin):
            if isinstance(moment, Line):
                if moment.offset > _limit(container):
                    break
                if moment.offset > now:
                    yield moment.stream, moment.text + (b"\n" if moment.whole else b"")
            elif isinstance(moment, float):
                if moment > _limit(container) and not await _wait_until(container, moment, over):
                    return
            else:
                break
        await over.wait()
    finally:
        waiting.cancel()
