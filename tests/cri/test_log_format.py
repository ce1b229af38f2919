"""The CRI log format, decoded whatever way its bytes come."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.pool.inotify import Inotify
from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.cri.logfile import read_log, tail_text
from vknode.pool.runtimes.cri.logformat import LogDecoder, format_time, parse_time
from vknode.pool.v1 import stream_pb2

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# A program's lines: (stream, text, whether the runtime cut it into parts).
LINES = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.binary(max_size=40).map(lambda b: b.replace(b"\n", b".")),
        st.booleans(),
    ),
    max_size=30,
)


def at(number: int) -> bytes:
    """The time of the n-th line as Go writes it: trailing zeros are left out."""
    moment = (START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{number % 7:03d}".rstrip("0").rstrip(".")
    return f"{moment}{fraction}Z".encode()


def written(lines: list[tuple[str, bytes, bool]]) -> bytes:
    out = []
    for number, (stream, text, cut) in enumerate(lines):
        head = at(number) + b" " + stream.encode()
        if cut:
            half = len(text) // 2
            out.append(head + b" P " + text[:half] + b"\n")
            out.append(head + b" F " + text[half:] + b"\n")
        else:
            out.append(head + b" F " + text + b"\n")
    return b"".join(out)


def decode(data: bytes, cuts: list[int], options: LogOptions) -> bytes:
    decoder = LogDecoder(options)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    out = [decoder.feed(data[a:b]) for a, b in itertools.pairwise(edges)]
    return b"".join([*out, decoder.finish()])


def shown(
    lines: list[tuple[str, bytes, bool]], keep: str | None = None, *, timestamps: bool = False
) -> bytes:
    out = []
    for number, (stream, text, _) in enumerate(lines):
        if keep in (None, stream):
            out.append((format_time(at(number)) + b" " if timestamps else b"") + text + b"\n")
    return b"".join(out)


@given(LINES, st.lists(st.integers(0, 5000), max_size=8))
def test_text_comes_out_whole_however_it_is_split(
    lines: list[tuple[str, bytes, bool]], cuts: list[int]
) -> None:
    assert decode(written(lines), cuts, LogOptions()) == shown(lines)


@given(LINES, st.lists(st.integers(0, 5000), max_size=8), st.sampled_from(["stdout", "stderr"]))
def test_one_stream_alone_with_times(
    lines: list[tuple[str, bytes, bool]], cuts: list[int], stream: str
) -> None:
    number = stream_pb2.LogStream.Value(f"LOG_STREAM_{stream.upper()}")
    options = LogOptions(timestamps=True, stream=number)
    assert decode(written(lines), cuts, options) == shown(lines, stream, timestamps=True)


@given(LINES, st.lists(st.integers(0, 5000), max_size=8), st.integers(0, 31))
def test_since_leaves_out_what_is_older(
    lines: list[tuple[str, bytes, bool]], cuts: list[int], first: int
) -> None:
    since = parse_time(at(first))
    assert decode(written(lines), cuts, LogOptions(since=since)) == b"".join(
        text + b"\n" for _, text, _ in lines[first:]
    )


@given(LINES, st.lists(st.integers(0, 5000), max_size=8), st.integers(0, 100))
def test_a_byte_limit_cuts_there(
    lines: list[tuple[str, bytes, bool]], cuts: list[int], limit: int
) -> None:
    options = LogOptions(limit_bytes=limit)
    assert decode(written(lines), cuts, options) == shown(lines)[:limit]


@given(LINES, st.integers(0, 40))
async def test_a_tail_counts_lines_of_the_program(
    lines: list[tuple[str, bytes, bool]], count: int
) -> None:
    path = Path("/dev/shm") / f"vknode-tail-{id(lines)}"
    path.write_bytes(written(lines))
    try:
        out = await whole(path, LogOptions(tail_lines=count))
    finally:
        path.unlink()
    assert out == shown(lines[len(lines) - min(count, len(lines)) :])


async def whole(path: Path, options: LogOptions) -> bytes:
    ended = asyncio.Event()
    ended.set()
    return b"".join([p async for p in read_log(path, options, ended, Inotify())])


def test_lines_that_are_not_of_the_format_are_left_out() -> None:
    data = b"garbage\n" + at(0) + b" stdout F good\n" + b"x y z\n\n" + at(1) + b" stdin F no\n"
    assert decode(data, [], LogOptions()) == b"good\n"


def test_a_last_line_without_its_end_is_shown() -> None:
    assert decode(at(0) + b" stdout F half", [], LogOptions()) == b"half"


def test_an_endless_line_does_not_fill_the_memory() -> None:
    decoder = LogDecoder(LogOptions())
    for _ in range(64):
        assert decoder.feed(b"x" * 65536) == b""
    assert len(decoder._rest) <= 1 << 20
    assert decoder.feed(b"\n" + at(0) + b" stdout F next\n") == b"next\n"


@pytest.mark.parametrize(
    ("stamp", "shown_as"),
    [
        (b"2026-01-02T03:04:05Z", b"2026-01-02T03:04:05.000000000Z"),
        (b"2026-01-02T03:04:05.1Z", b"2026-01-02T03:04:05.100000000Z"),
        (b"2026-01-02T03:04:05.123456789Z", b"2026-01-02T03:04:05.123456789Z"),
        (b"2026-01-02T05:04:05.5+02:00", b"2026-01-02T03:04:05.500000000Z"),
        (b"yesterday", b"yesterday"),
    ],
)
def test_times_go_out_in_utc_with_nine_digits(stamp: bytes, shown_as: bytes) -> None:
    assert format_time(stamp) == shown_as


async def test_a_long_log_is_searched_for_its_tail_and_its_time(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    count = 60_000
    path.write_bytes(b"".join(at(n) + b" stdout F line %d\n" % n for n in range(count)))
    tail = await whole(path, LogOptions(tail_lines=40_000))
    assert tail.startswith(b"line 20000\n") and tail.count(b"\n") == 40_000
    since = await whole(path, LogOptions(since=parse_time(at(33_333))))
    assert since.startswith(b"line 33333\n") and since.count(b"\n") == count - 33_333
    assert tail_text(path, 80, 30) == "line 59997\nline 59998\nline 59999\n"[-30:]


async def test_following_shows_each_line_as_it_is_written_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    ended = asyncio.Event()
    inotify = Inotify()
    with path.open("wb", buffering=0) as out:
        out.write(at(0) + b" stdout F zero\n")
        stream = aiter(read_log(path, LogOptions(follow=True), ended, inotify))
        assert await anext(stream) == b"zero\n"
        for number in range(1, 5):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            out.write(at(number) + b" stdout F %d\n" % number)
            assert await asyncio.wait_for(waiting, 30) == b"%d\n" % number
        # Rotated: the rest of the old file comes first, then the new one.
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        out.write(at(5) + b" stdout F old\n")
        path.rename(tmp_path / "0.log.1")
        with path.open("wb", buffering=0) as fresh:
            fresh.write(at(6) + b" stdout F new\n")
            assert await asyncio.wait_for(waiting, 30) == b"old\n"
            assert await asyncio.wait_for(anext(stream), 30) == b"new\n"
            fresh.write(at(7) + b" stdout F last\n")
            ended.set()
            assert await asyncio.wait_for(anext(stream), 30) == b"last\n"
            assert await anext(stream, None) is None
    assert inotify._descriptor == -1, "the watch must be given back"


async def test_a_follower_that_leaves_gives_its_watch_back(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"")
    inotify = Inotify()
    stream = read_log(path, LogOptions(follow=True), asyncio.Event(), inotify)
    waiting = asyncio.ensure_future(anext(aiter(stream)))
    while inotify._descriptor < 0:
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert inotify._descriptor == -1


async def test_a_rotation_right_at_the_end_of_a_container_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(at(0) + b" stdout F one\n")
    ended = asyncio.Event()
    stream = aiter(read_log(path, LogOptions(follow=True), ended, Inotify()))
    assert await anext(stream) == b"one\n"
    path.rename(tmp_path / "0.log.1")
    path.write_bytes(at(1) + b" stdout F two\n")
    ended.set()
    assert await asyncio.wait_for(anext(stream), 30) == b"two\n"
    assert await anext(stream, None) is None
