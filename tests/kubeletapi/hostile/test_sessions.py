"""After a good upgrade, bytes that are nearly frames: whatever comes of it, the server lets go with
the client, and nothing of ours fails."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress

import pytest
from hypothesis import strategies as st

from tests.kubeletapi.hostile.budget import hold
from tests.kubeletapi.hostile.world import (
    MAY_ALL,
    PATIENCE,
    UPGRADES,
    World,
    read_until_quiet,
    upgrade,
)
from vknode.streaming.spdy import SpdyConnection

some_bytes = st.binary(max_size=40)
#: Payloads that channels, terminals and tunnels know.
payloads = st.one_of(
    some_bytes,
    st.sampled_from(
        [b"\0hello", b"\xff\0", b'\4{"Width":80,"Height":24}', b"0aGVsbG8=", b"\4{", b"\x03\xe8"]
    ),
    st.integers(1, 200_000).map(bytes),  # up to more than a message may have
)


@st.composite
def websocket_frames(draw: st.DrawFn) -> bytes:
    """One frame; some of its promises may be broken."""
    payload = draw(payloads)
    opcode = draw(st.sampled_from([0, 1, 2, 2, 2, 8, 9, 10, 3, 15]))
    first = opcode | draw(st.sampled_from([0x80, 0x80, 0x80, 0, 0xC0, 0xF0]))
    length = draw(st.one_of(st.just(len(payload)), st.just(len(payload)), st.integers(0, 2**63)))
    masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 65536:
        head = bytes((first, masked | 126)) + struct.pack(">H", length)
    else:
        head = bytes((first, masked | 127)) + struct.pack(">Q", length)
    return head + (bytes(4) if masked else b"") + payload


@st.composite
def spdy_pieces(draw: st.DrawFn) -> bytes:
    """What a client says, in its order, with frames of nobody between."""
    core = SpdyConnection(client=True)
    said = b""
    for _ in range(draw(st.integers(1, 8))):
        what = draw(st.integers(0, 5))
        open_ = sorted(core.open_streams)
        if what == 0:
            kind = draw(st.sampled_from(["error", "stdout", "stdin", "data", "resize", "x"]))
            port = draw(st.sampled_from(["80", "49", "0", "99999", "x"]))
            about = {"streamtype": kind, "port": port, "requestid": draw(st.sampled_from("ab"))}
            core.open_stream(about, fin=draw(st.booleans()))
        elif what == 1 and open_:
            stream = draw(st.sampled_from(open_))
            if core.can_send(stream):
                core.send_data(stream, draw(payloads), fin=draw(st.booleans()))
        elif what == 2 and open_:
            core.reset_stream(draw(st.sampled_from(open_)))
        elif what == 3:
            core.ping()
        elif what == 4:
            body = draw(some_bytes)
            length = draw(st.one_of(st.just(len(body)), st.integers(0, 2**24 - 1)))
            kind_of = draw(st.integers(0, 12))
            head = struct.pack(">HHI", 0x8003, kind_of, draw(st.integers(0, 255)) << 24 | length)
            said += core.data_to_send() + head + body
        else:
            body = draw(some_bytes)
            fin = draw(st.integers(0, 1)) << 24
            head = struct.pack(">II", draw(st.integers(0, 9)), fin | len(body))
            said += core.data_to_send() + head + body
    return said + core.data_to_send()


def spoilt(pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Some in a row, of which one byte may be another, and the end may be missing."""

    @st.composite
    def made(draw: st.DrawFn) -> bytes:
        data = b"".join(draw(st.lists(pieces, min_size=1, max_size=6)))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(data)))
            data = data[:at] + draw(st.binary(max_size=3)) + data[at + 1 :]
        return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data

    return made()


@pytest.mark.parametrize("way", UPGRADES)
def test_whatever_follows_an_upgrade_harms_nobody(world: World, way: str) -> None:
    websocket = b"Upgrade: websocket" in UPGRADES[way]
    # A tunnel carries the one in the other.
    inside = spoilt(spdy_pieces()).map(in_message)
    frames = spoilt(websocket_frames()) if websocket else spoilt(spdy_pieces())
    data = st.one_of(frames, inside) if way == "tunnel" else frames

    def hostile(sent: bytes, reads: bool) -> None:
        with world.connected(MAY_ALL) as tls:
            upgrade(tls, UPGRADES[way])
            tls.settimeout(PATIENCE)
            with suppress(ConnectionError, ssl.SSLEOFError):  # it may have had enough
                tls.sendall(sent)
            if reads:
                read_until_quiet(tls)
        world.require_let_go()

    hold(hostile, data, st.booleans())
    world.require_health()


def in_message(data: bytes) -> bytes:
    """One masked binary message."""
    return b"\x82\xff" + struct.pack(">Q", len(data)) + bytes(4) + data
