"""Bytes that are nearly requests, several in a row and cut anywhere: the server answers or ends the
connection, or waits for the rest and lets go with the client; never a fault, never a word to
somebody who may not hear it."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import strategies as st

from tests.kubeletapi.hostile.budget import hold
from tests.kubeletapi.hostile.harmless import CONTENT
from tests.kubeletapi.hostile.world import (
    MAY_ALL,
    MAY_NOTHING,
    NOBODY,
    PATIENCE,
    World,
    read_to_end,
    read_until_quiet,
)

#: What an answer may be, by who asks. 100 goes before another one; 417 comes, as from a kubelet,
#: before anybody is asked who they are.
ALLOWED = {
    NOBODY: {"100", "400", "401", "417"},
    MAY_NOTHING: {"100", "400", "403", "417"},
}
#: What a kubelet answers with 500.
WORDS = (b"container not found (", b"tty and stderr cannot both be true")

some_bytes = st.binary(max_size=12)
targets = st.sampled_from(
    [
        b"/healthz",
        b"/pods",
        b"/nothing",
        b"/stats/summary?only_cpu_and_memory=true",
        b"/metrics/resource",
        b"/containerLogs/default/web/main?tailLines=3&sinceTime=2026-01-01T00:00:00Z",
        b"/exec/default/web/main?command=cat&input=1&output=1",
        b"/exec/default/web/terminal?command=cat&output=1&error=1",
        b"/exec/default/web/u-1/new?command=cat&output=1",
        b"/attach/default/web/terminal?output=1&error=1",
        b"/portForward/default/web?port=80,0081",
        b"/run/default/web/main?cmd=id",
        b"//pods/../pods/%2e%2e/%ff%00",
        b"http://x:1/pods",
        b"*",
    ]
)
methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"PRI"])
fields = st.sampled_from(
    [
        *(b"Host", b"Connection", b"Upgrade", b"Expect", b"Content-Type", b"Content-Encoding"),
        *(b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Accept", b"Cookie"),
        *(b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Sec-WebSocket-Protocol"),
        *(b"Sec-WebSocket-Extensions", b"X-Stream-Protocol-Version", b"X-Remote-User"),
    ]
)
values = st.sampled_from(
    [
        *(b"x", b"close", b"keep-alive", b"Upgrade", b"websocket", b"SPDY/3.1", b"h2c", b""),
        *(
            b"100-continue",
            b"chunked",
            b"gzip",
            b"gzip, chunked",
            b"0",
            b"3",
            b"-1",
            b"99999999999",
        ),
        *(b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"13"),
        *(b"dGhlIHNhbXBsZSBub25jZQ==", b"v5.channel.k8s.io", b"SPDY/3.1+portforward.k8s.io"),
        *(
            b"base64url.bearer.authorization.k8s.io.eA",
            b"Bearer x",
            b"Basic eDp4",
            b"system:masters",
        ),
        *(b"permessage-deflate; client_max_window_bits=99", b"portforward.k8s.io", b"\xff\xfe"),
    ]
)
headers = st.lists(
    st.tuples(fields, st.one_of(values, some_bytes)).map(b": ".join), max_size=6
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
bodies = st.one_of(
    some_bytes,
    st.sampled_from([b"", b"3\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"a=b&c=%zz"]),
)
websockets = st.just(
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1"]))
    line = b" ".join((draw(methods), draw(targets), version))
    extra = draw(st.one_of(st.just(b""), websockets))
    return line + b"\r\nHost: x\r\n" + extra + draw(headers) + b"\r\n" + draw(bodies)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Several requests in a row, of which some bytes are others, and the end may be missing."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(some_bytes) + data[start + draw(st.integers(0, 3)) :]
    return data[: draw(st.integers(1, len(data)))] if draw(st.booleans()) and data else data


def require_allowed(who: str, said: bytes) -> None:
    # Nobody without rights is told anything that they have chosen but in a 400, whose end is that
    # of the connection: what looks like a status is one.
    statuses = set(re.findall(rb"HTTP/1\.[01] (\d{3}) ", said))
    if who in ALLOWED:
        assert {status.decode() for status in statuses} <= ALLOWED[who], said
        assert CONTENT not in said
    elif b"500" in statuses:
        assert any(words in said for words in WORDS), said


@pytest.mark.parametrize("who", [NOBODY, MAY_NOTHING, MAY_ALL])
def test_whatever_is_sent_harms_nobody(world: World, who: str) -> None:
    def hostile(data: bytes, pause_at: int) -> None:
        with world.connected(who) as tls:
            for piece in (data[:pause_at], data[pause_at:]):
                if piece:
                    tls.sendall(piece)
            said = read_until_quiet(tls)
        require_allowed(who, said)
        world.require_let_go()

    hold(hostile, spoilt(), st.integers(0, 200))
    world.require_health()


@pytest.mark.parametrize("who", [NOBODY, MAY_NOTHING, MAY_ALL])
def test_whole_requests_are_answered_to_the_last(world: World, who: str) -> None:
    """With a request behind them that ends the connection, the end comes."""
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    plain = st.tuples(st.sampled_from([b"GET", b"HEAD", b"PUT"]), targets, headers_without_body)

    def hostile(made: list[tuple[bytes, bytes, bytes]]) -> None:
        heads = [b"%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % one for one in made]
        with world.connected(who) as tls:
            tls.sendall(b"".join(heads) + last)
            said = read_to_end(tls)
        assert said.startswith(b"HTTP/1."), said
        require_allowed(who, said)
        world.require_let_go()

    hold(hostile, st.lists(plain, max_size=4))
    world.require_health()


headers_without_body = st.lists(
    st.sampled_from(
        [b"Accept: */*", b"Cookie: \xff", b"Authorization: Bearer x", b"X-Remote-User: root"]
    ),
    max_size=3,
).map(lambda lines: b"".join(line + b"\r\n" for line in lines))


def test_half_a_request_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever says only that much, and says no more, has shown nobody who they are."""
    with monkeypatch.context() as impatient:
        impatient.setattr(world.api._doorman, "_patience", 0.3)
        for half in (b"", b"GET /pods HTTP/1.1\r\nHost:", b"GET /pods HT", b"\r\n\r\n"):
            give_up = time.monotonic() + PATIENCE
            while (said := ended_after(world, half)) is None:
                assert time.monotonic() < give_up
            assert CONTENT not in said
    world.require_health()


def ended_after(world: World, half: bytes) -> bytes | None:
    """What the server says to somebody without a certificate who says this, and how it ends; None
    where it has lost its patience before that was said, as on a busy machine."""
    try:
        with world.connected(NOBODY) as tls:
            if half:
                tls.sendall(half)
            return read_to_end(tls)
    except TimeoutError:
        raise
    except OSError:
        return None
