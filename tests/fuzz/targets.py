"""What is fuzzed: parsers of bytes that come from others. Each target takes any bytes, and
raises only where the parser breaks a promise: an exception that it does not name, or
another answer for the same bytes cut differently.

The first byte of an input is the seed of the cuts, so that a fuzzer can find them too.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

from vknode.agent.config import ConfigError, load_config
from vknode.kube.lines import LineSplitter, LineTooLong
from vknode.kubeletapi.log_options import LogQueryError, parse_log_options
from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.cri import envfile
from vknode.pool.runtimes.cri.logformat import LogDecoder
from vknode.pool.v1 import stream_pb2
from vknode.streaming.channels import PROTOCOLS, ChannelError
from vknode.streaming.remotecommand import ResizeParser
from vknode.streaming.spdy import (
    ConnectionClosed,
    DataReceived,
    Event,
    SpdyConnection,
    StreamOpened,
)

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: What a peer may provoke in answers for each byte that it sends, and in all.
_ANSWERS = 1 << 20


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The input without its first byte, whole and in pieces."""
    seed, body = data[:1], data[1:]
    chance = random.Random(seed)
    pieces, start = [], 0
    while start < len(body):
        end = start + chance.randint(1, 40)
        pieces.append(body[start:end])
        start = end
    return body, pieces


def spdy(data: bytes) -> None:
    """A server's connection answers or closes whatever comes, and the cuts do not matter."""
    body, pieces = cut(data)
    assert _served([body]) == _served(pieces)


def _served(pieces: list[bytes]) -> tuple[list[object], bytes]:
    connection = SpdyConnection(client=False)
    seen: list[object] = []
    sent = b""
    for piece in pieces:
        seen += _reactions(connection.receive_data(piece))
        sent += connection.data_to_send()
        assert len(sent) <= _ANSWERS
    seen += _reactions(connection.receive_eof())
    assert connection.closed
    return _merged(seen), sent


def _reactions(events: list[Event]) -> Iterator[object]:
    for event in events:
        if isinstance(event, StreamOpened):
            yield event
        elif isinstance(event, DataReceived):
            yield (event.stream_id, event.data)
        elif isinstance(event, ConnectionClosed):
            yield "closed"


def _merged(events: list[object]) -> list[object]:
    """Data of one stream that came in several pieces, as one."""
    merged: list[object] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, tuple) and isinstance(last, tuple) and event[0] == last[0]:
            merged[-1] = (event[0], last[1] + event[1])
        else:
            merged.append(event)
    return merged


def channels(data: bytes) -> None:
    """A WebSocket message is decoded or refused in every protocol."""
    for protocol in PROTOCOLS:
        try:
            protocol.decode(data)
        except ChannelError:
            continue


def resize(data: bytes) -> None:
    """The sizes of a terminal do not depend on the cuts."""
    body, pieces = cut(data)
    whole, cutting = ResizeParser(), ResizeParser()
    sizes = [size for piece in pieces for size in cutting.feed(piece)]
    assert sizes == whole.feed(body)


def cri_log(data: bytes) -> None:
    """A log shows the same whatever the pieces it is read in, never more than its limit."""
    body, pieces = cut(data)
    for options in (
        LogOptions(),
        LogOptions(timestamps=True, since=10**18),
        LogOptions(stream=stream_pb2.LOG_STREAM_STDERR, limit_bytes=100),
    ):
        whole, cutting = LogDecoder(options), LogDecoder(options)
        expected = whole.feed(body) + whole.finish()
        got = b"".join(cutting.feed(piece) for piece in pieces) + cutting.finish()
        assert got == expected
        assert options.limit_bytes is None or len(got) <= options.limit_bytes


def env_file(data: bytes) -> None:
    """A file of variables is read or refused."""
    try:
        envfile.parse(data)
    except envfile.EnvFileError:
        return


def watch_lines(data: bytes) -> None:
    """Lines of a watch do not depend on the cuts."""
    body, pieces = cut(data)
    whole, cutting = LineSplitter(64), LineSplitter(64)
    try:
        expected = whole.feed(body)
    except LineTooLong:
        return  # found at another moment by the other, which may have given lines before
    try:
        got = [line for piece in pieces for line in cutting.feed(piece)]
    except LineTooLong:
        raise AssertionError("a line that fits is too long in pieces") from None
    assert got == expected and cutting.pending == whole.pending


def log_query(data: bytes) -> None:
    """A query for logs is taken or refused."""
    query = parse_qs(data.decode("latin-1"), keep_blank_values=True)
    try:
        parse_log_options("main", query, _NOW)
    except LogQueryError:
        return


def configuration(data: bytes) -> None:
    """The agent's configuration is taken, or every problem named."""
    # A fuzzer ends its process without a word: nothing may be left by then.
    with tempfile.TemporaryDirectory(prefix="vkn-fuzz-") as folder:
        file = Path(folder) / "agent.yaml"
        file.write_bytes(data)
        try:
            load_config(file)
        except ConfigError as error:
            assert error.problems
            assert all(problem.startswith(str(file)) for problem in error.problems)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        spdy,
        channels,
        resize,
        cri_log,
        env_file,
        watch_lines,
        log_query,
        configuration,
    )
}
