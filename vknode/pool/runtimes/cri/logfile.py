"""Log files on disk: where to start, how to go on when more is written or rotated.

A runtime that is told to open a log anew starts with the new file at once, and writes what
it still holds of the old one a moment later; likewise the last lines of a container may come
after its end was told. So a file that is over is only left once nobody has it open for
writing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from vknode.pool.inotify import Inotify
from vknode.pool.runtimes.base import Failure, LogOptions
from vknode.pool.runtimes.cri.logformat import (
    LogDecoder,
    count_lines,
    ends_open,
    first_time,
    tail_start,
)
from vknode.pool.runtimes.cri.rotation import rotated

_BLOCK = 64 * 1024
_PIECE = 64 * 1024
# A search by time stops where the rest is quick to read anyway.
_SEARCH_UNTIL = 4 * _BLOCK
# Seconds that a writer of a file that is over has to write more or close it, and all in all.
_CLOSING = 2.0
_CLOSING_MOST = 30.0


async def read_log(
    path: Path, options: LogOptions, ended: asyncio.Event, inotify: Inotify
) -> AsyncIterator[bytes]:
    """Pieces of at most 64 KiB, as `Runtime.logs` tells. Raises Failure("LogMissing")."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failure("LogMissing", "there is no log of this container any more") from None
    with contextlib.ExitStack() as stack:
        opened = [file]
        stack.callback(lambda: os.close(opened[0]))
        decoder = LogDecoder(options)
        if options.tail_lines is not None:
            start = 0
            for found in _tail_search(file, options.tail_lines):
                start = found
                await asyncio.sleep(0)  # a long tail must not hold up the others
            os.lseek(file, start, os.SEEK_SET)
        elif options.since is not None:
            os.lseek(file, _since_offset(file, options.since), os.SEEK_SET)
        changed = None
        closing_since: float | None = None
        closing_until: float | None = None
        while not decoder.done:
            # Looked at before the read: what was written before the end is then read.
            ended_before = ended.is_set()
            replaced = _replaced(opened[0], path)
            data = os.read(opened[0], _BLOCK)
            if data:
                text = decoder.feed(data)
                for start in range(0, len(text), _PIECE):
                    yield text[start : start + _PIECE]
                await asyncio.sleep(0)
                closing_until = None
                continue
            now = time.monotonic()
            if ended_before or replaced:
                if closing_since is None:
                    closing_since = now
                if closing_until is None:
                    closing_until = min(now + _CLOSING, closing_since + _CLOSING_MOST)
                open_still = now < closing_until and _open_for_writing(opened[0])
                if not open_still and _unread(opened[0]):
                    continue  # written between the read and the close
            else:
                open_still = False
            if not open_still:
                if _go_on(opened, path):
                    closing_since = closing_until = None
                    continue
                if ended_before or not options.follow:
                    break
            if changed is None:
                # Watch first, then read once more: nothing falls between the two.
                try:
                    changed = stack.enter_context(inotify.watch(path.parent))
                except OSError as error:
                    raise Failure("LogWatch", f"cannot follow the log: {error.strerror}") from None
                continue
            if open_still and closing_until is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), closing_until - now)
            else:
                await _first_of(changed, ended)
            changed.clear()
        rest = decoder.finish()
        if rest:
            yield rest


def _replaced(file: int, path: Path) -> bool:
    """Whether the runtime writes to another file now."""
    try:
        new = path.stat()
    except FileNotFoundError:
        return False
    # A runtime makes the new file first and stops writing to the old one then.
    return not os.path.samestat(new, os.fstat(file)) and new.st_size > 0


def _unread(file: int) -> bool:
    return os.fstat(file).st_size > os.lseek(file, 0, os.SEEK_CUR)


def _open_for_writing(file: int) -> bool:
    """Whether anybody has it open for writing: only then a read lease is refused with EAGAIN
    (fcntl(2), F_SETLEASE). False where the file system has no leases."""
    try:
        # Whoever opens it just now breaks the lease; the usual signal for that kills.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _go_on(opened: list[int], path: Path) -> bool:
    """Goes on with the file after this one, or at the start of a truncated one."""
    old = os.fstat(opened[0])
    if not _replaced(opened[0], path):
        truncated = old.st_size < os.lseek(opened[0], 0, os.SEEK_CUR)
        if truncated:
            os.lseek(opened[0], 0, os.SEEK_SET)
        return truncated
    try:
        fresh = os.open(_next_log(old, path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    os.close(opened[0])
    opened[0] = fresh
    return True


def _next_log(old: os.stat_result, path: Path) -> Path:
    """A slow reader may be more than one rotation behind, and its file compressed by now:
    then the next one is the first that was written to no earlier."""
    names = sorted(file for file in rotated(path) if file.suffix not in (".gz", ".tmp"))
    later = path
    for file, following in zip(names, [*names[1:], path], strict=True):
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            if os.path.samestat(found, old):
                return following
            if later == path and found.st_mtime_ns >= old.st_mtime_ns:
                later = file
    return later


async def _first_of(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _tail_search(file: int, lines: int) -> Iterator[int]:
    """Where the last `lines` lines start, found by blocks from the end: the last item.

    Yields after each block, so that the caller can let others run.
    """
    size = os.fstat(file).st_size
    # A line that the runtime is just writing is shown too, but not counted.
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if lines <= 0:
        yield end
        return
    # From `position` to `end` there are fewer lines than asked for.
    position, left, carry = end, lines, b""
    while position > 0:
        start = max(0, position - _BLOCK)
        block = os.pread(file, position - start, start) + carry
        whole = 0 if start == 0 else block.find(b"\n") + 1
        carry, body = block[:whole], block[whole:]
        if position == end and ends_open(body):
            left -= 1
        there = count_lines(body)
        if there > left:
            yield start + whole + tail_start(body, left)
            return
        left -= there
        position = start
        yield 0


def _since_offset(file: int, since: int) -> int:
    """An offset before the first line at `since`, close to it; times in a file rise."""
    low, high = 0, os.fstat(file).st_size
    while high - low > _SEARCH_UNTIL:
        middle = (low + high) // 2
        time = first_time(os.pread(file, _BLOCK, middle))
        if time is not None and time < since:
            low = middle
        else:
            high = middle
    if low == 0:
        return 0
    return low + os.pread(file, _BLOCK, low).find(b"\n") + 1


def tail_text(path: Path, lines: int, limit: int) -> str:
    """The end of a log: at most so many lines, of these at most the last bytes."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        start = max([0, *_tail_search(file, lines)][-1], os.fstat(file).st_size - limit * 16)
        decoder = LogDecoder(LogOptions())
        text = decoder.feed(os.pread(file, limit * 16 + _BLOCK, start)) + decoder.finish()
    finally:
        os.close(file)
    return text[-limit:].decode(errors="replace")
