"""Logs are rotated while they are written and read, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cri.containerds import Containerd
from tests.cri.harness import PATIENCE, Harness, pod
from vknode.pool.inotify import Inotify
from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.cri import logfile
from vknode.pool.runtimes.cri.logfile import read_log
from vknode.pool.runtimes.cri.rotation import LogPolicy, tidy

LINE = b"2026-01-01T00:00:00.000000000Z stdout %s\n"


@pytest.fixture
async def rotating(harness: Harness, shared_containerd: Containerd) -> AsyncIterator[Harness]:
    made = Harness(
        shared_containerd.socket,
        harness.options.state_dir,
        harness.options.pool,
        logs=LogPolicy(size=64 * 1024, files=3, interval=0.05),
    )
    await made.connect()
    yield made
    await made.disconnect()


@pytest.mark.containerd
async def test_a_log_that_is_rotated_is_followed_without_a_gap(rotating: Harness) -> None:
    lines = 20_000
    spec = pod(
        "i=0; while [ $i -lt 20 ]; do seq $((i*1000)) $((i*1000+999)); sleep 0.2; i=$((i+1)); done"
    )
    _, ref = await rotating.start(spec)
    ended = asyncio.Event()
    read = hashlib.sha256()

    async def until_the_end() -> None:
        await rotating.exit_of(ref)
        ended.set()

    ending = asyncio.create_task(until_the_end())
    folder = rotating.options.state_dir / "pods" / spec.uid / "logs" / "main"
    async with asyncio.timeout(2 * PATIENCE):
        async for piece in rotating.runtime.logs(ref, LogOptions(follow=True), ended):
            read.update(piece)
    await ending
    expected = "".join(f"{number}\n" for number in range(lines)).encode()
    assert read.hexdigest() == hashlib.sha256(expected).hexdigest()
    async with asyncio.timeout(PATIENCE):  # the last rotation may still be compressing
        while any(file.suffix == ".tmp" for file in folder.iterdir()):
            await asyncio.sleep(0.05)
    kept = sorted(file.name for file in folder.iterdir())
    assert kept[0] == "0.log" and len(kept) == 3
    assert re.fullmatch(r"0\.log\.\d{8}-\d{6}(\.gz)?", kept[1])
    await rotating.runtime.remove_container(ref, keep_log=False)
    assert list(folder.iterdir()) == []


@pytest.mark.containerd
async def test_a_log_somebody_took_away_is_written_again(rotating: Harness) -> None:
    spec = pod("while :; do echo tick; sleep 0.05; done")
    _, ref = await rotating.start(spec)
    await rotating.says(ref, "tick")
    path = rotating.options.state_dir / "pods" / spec.uid / "logs" / "main" / "0.log"
    path.unlink()
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or not path.stat().st_size:
            await asyncio.sleep(0.02)


def test_older_logs_are_compressed_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("now")
    for day in range(1, 6):
        (tmp_path / f"0.log.2026010{day}-000000").write_text(f"day {day}")
    (tmp_path / "0.log.20260105-000000").chmod(0o640)
    (tmp_path / "0.log.20260104-000000.tmp").write_text("half a file")
    # Compressed already, but not yet removed when the pool was killed.
    (tmp_path / "0.log.20260103-000000.gz").write_bytes(gzip.compress(b"day 3"))
    (tmp_path / "1.log").write_text("another instance")
    tidy(path, 5)
    names = sorted(file.name for file in tmp_path.iterdir())
    days = [f"0.log.2026010{day}-000000.gz" for day in (3, 4, 5)]
    assert names == ["0.log", *days, "1.log"]
    assert [gzip.decompress((tmp_path / day).read_bytes()) for day in days] == [
        b"day 3",
        b"day 4",
        b"day 5",
    ]
    assert (tmp_path / days[2]).stat().st_mode & 0o777 == 0o640
    tidy(path, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.log", "1.log"]


async def test_a_slow_reader_finds_every_rotated_log(tmp_path: Path) -> None:
    """Three rotations happen between two of its reads."""
    path = tmp_path / "0.log"

    def line(text: str) -> str:
        return f"2026-01-01T00:00:00.000000000Z stdout F {text}\n"

    path.write_text(line("one"))
    ended = asyncio.Event()
    stream = read_log(path, LogOptions(follow=True), ended, Inotify())
    assert await anext(stream) == b"one\n"
    for second, (late, new) in enumerate((("one more", "two"), ("", "three"), ("", "four"))):
        if late:
            with path.open("a") as file:
                file.write(line(late))
        path.rename(tmp_path / f"0.log.20260101-00000{second}")
        path.write_text(line(new))
    ended.set()
    rest = b"".join([piece async for piece in stream])
    assert rest == b"one more\ntwo\nthree\nfour\n"


async def test_what_the_runtime_writes_late_to_a_rotated_log_comes_before_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd opens the new file, and then writes what it still had of the old one."""
    monkeypatch.setattr(logfile, "_CLOSING", PATIENCE)
    path = tmp_path / "0.log"
    ended = asyncio.Event()
    with path.open("wb", buffering=0) as old:
        old.write(LINE % b"F one")
        stream = read_log(path, LogOptions(follow=True), ended, Inotify())
        assert await anext(stream) == b"one\n"
        path.rename(tmp_path / "0.log.20260101-000000")
        path.write_bytes(LINE % b"F wo")
        late = asyncio.ensure_future(anext(stream))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late), 0.1)
        old.write(LINE % b"P t")
    ended.set()
    got = await asyncio.wait_for(late, PATIENCE)
    assert got + b"".join([piece async for piece in stream]) == b"two\n"


async def test_a_rotated_log_is_read_for_as_long_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(logfile, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(logfile, "_CLOSING", PATIENCE)
    monkeypatch.setattr(logfile, "_CLOSING_MOST", 100 * PATIENCE)
    path = tmp_path / "0.log"
    ended = asyncio.Event()
    with path.open("wb", buffering=0) as old:
        old.write(LINE % b"F one")
        stream = read_log(path, LogOptions(follow=True), ended, Inotify())
        assert await anext(stream) == b"one\n"
        path.rename(tmp_path / "0.log.20260101-000000")
        path.write_bytes(LINE % b"F new")
        for text in (b"two", b"three", b"four", b"five"):
            late = asyncio.ensure_future(anext(stream))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(late), 0.1)
            now += 0.9 * PATIENCE
            old.write(LINE % (b"F " + text))
            assert await asyncio.wait_for(late, PATIENCE) == text + b"\n"
    ended.set()
    assert b"".join([piece async for piece in stream]) == b"new\n"


async def test_the_last_lines_may_come_after_the_end_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "_CLOSING", PATIENCE)
    path = tmp_path / "0.log"
    ended = asyncio.Event()
    with path.open("wb", buffering=0) as writer:
        writer.write(LINE % b"F one")
        stream = read_log(path, LogOptions(), ended, Inotify())
        assert await anext(stream) == b"one\n"
        ended.set()
        late = asyncio.ensure_future(anext(stream))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late), 0.1)
        writer.write(LINE % b"F two")
    assert await asyncio.wait_for(late, PATIENCE) == b"two\n"
    assert [piece async for piece in stream] == []


async def test_a_reader_whose_log_is_compressed_by_now_goes_on_with_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(LINE % b"F one")
    ended = asyncio.Event()
    stream = read_log(path, LogOptions(follow=True), ended, Inotify())
    assert await anext(stream) == b"one\n"
    for second, text in enumerate((b"F two", b"F three")):
        tidy(path, 5)
        path.rename(tmp_path / f"0.log.20260101-00000{second}")
        path.write_bytes(LINE % text)
    ended.set()
    assert b"".join([piece async for piece in stream]) == b"two\nthree\n"
