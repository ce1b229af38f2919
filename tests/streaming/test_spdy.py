"""Two SPDY ends talk through any split of the bytes; hostile bytes never raise."""

import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vknode.streaming.spdy import (
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    RstStatus,
    SpdyConnection,
    SpdyStateError,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from vknode.streaming.spdy_dictionary import DICTIONARY
from vknode.streaming.spdy_frames import (
    FrameType,
    HeaderDeflater,
    control_frame,
    data_frame_header,
)


def pair() -> tuple[SpdyConnection, SpdyConnection]:
    return SpdyConnection(client=True), SpdyConnection(client=False)


def move(source: SpdyConnection, target: SpdyConnection) -> list[Event]:
    return target.receive_data(source.data_to_send())


def opened(count: int = 1) -> tuple[SpdyConnection, SpdyConnection, list[int]]:
    client, server = pair()
    ids = [client.open_stream({"streamtype": f"s{i}"}) for i in range(count)]
    move(client, server)
    for stream_id in ids:
        server.accept_stream(stream_id)
    move(server, client)
    return client, server, ids


def joined(events: Iterable[Event], stream_id: int) -> bytes:
    return b"".join(
        e.data for e in events if isinstance(e, DataReceived) and e.stream_id == stream_id
    )


def syn(stream_id: int, deflate: HeaderDeflater, flags: int = 0) -> bytes:
    block = deflate.pack({"streamtype": "x"})
    return control_frame(
        FrameType.SYN_STREAM, stream_id.to_bytes(4, "big") + bytes(6) + block, flags
    )


_HEADERS = st.dictionaries(
    st.text("abcdefghijklmnopqrstuvwxyz-:", min_size=1, max_size=20),
    st.text(max_size=40),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_HEADERS, st.binary(max_size=200), st.booleans()), min_size=1, max_size=6),
    st.lists(st.integers(1, 30), max_size=40),
)
def test_everything_arrives_however_it_is_split(
    streams: list[tuple[dict[str, str], bytes, bool]], cuts: list[int]
) -> None:
    client, server = pair()
    ids = []
    for headers, data, fin in streams:
        ids.append(client.open_stream(headers))
        client.send_data(ids[-1], data, fin=fin)
    wire = client.data_to_send()
    events: list[Event] = []
    for cut in cuts:
        events += server.receive_data(wire[:cut])
        wire = wire[cut:]
    events += server.receive_data(wire)
    for stream_id, (headers, data, fin) in zip(ids, streams, strict=True):
        assert StreamOpened(stream_id, headers) in events
        assert joined(events, stream_id) == data
        assert (StreamEnded(stream_id) in events) == fin


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_rubbish_never_raises(chunks: list[bytes], client: bool) -> None:
    connection = SpdyConnection(client=client)
    for chunk in chunks:
        connection.receive_data(chunk)
    events = connection.receive_eof()
    assert connection.closed
    assert [e for e in events if not isinstance(e, ConnectionClosed)] == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(FrameType), st.integers(0, 3), st.binary(max_size=24)), max_size=8
    )
)
def test_well_framed_rubbish_never_raises(frames: list[tuple[FrameType, int, bytes]]) -> None:
    client, _, _ = opened()
    for type_, flags, payload in frames:
        client.receive_data(control_frame(type_, payload, flags))


def test_an_exec_from_end_to_end() -> None:
    client, server = pair()
    error, stdin, stdout = (
        client.open_stream({"streamType": kind}) for kind in ("error", "stdin", "stdout")
    )
    assert (error, stdin, stdout) == (1, 3, 5)
    events = move(client, server)
    assert events[0] == StreamOpened(1, {"streamtype": "error"})
    for stream_id in (error, stdin, stdout):
        server.accept_stream(stream_id)
    assert move(server, client) == [StreamReplied(i, {}) for i in (1, 3, 5)]
    client.send_data(stdin, b"x" * 100_000, fin=True)
    events = move(client, server)
    assert joined(events, stdin) == b"x" * 100_000
    assert events[-1] == StreamEnded(stdin)
    assert server.can_send(stdin)
    assert not client.can_send(stdin)
    server.send_data(stdout, b"out", fin=True)
    server.send_data(error, b"{}", fin=True)
    server.go_away()
    assert move(server, client) == [
        DataReceived(5, b"out"),
        StreamEnded(5),
        DataReceived(1, b"{}"),
        StreamEnded(1),
        GoAwayReceived(5, 0),
    ]
    assert client.receive_eof() == [ConnectionClosed(None)]
    assert client.receive_data(b"more") == []


def test_the_dictionary_is_the_peers() -> None:
    # FDICT's checksum on the wire is what the peer compares.
    block = HeaderDeflater().pack({"a": "b"})
    assert block[2:6] == zlib.adler32(DICTIONARY).to_bytes(4, "big") == bytes.fromhex("e3c6a7c2")


def test_pings_are_echoed_and_ours_are_told() -> None:
    client, server = pair()
    ping_id = client.ping()
    assert ping_id % 2 == 1
    assert move(client, server) == []
    assert move(server, client) == [PingAcknowledged(ping_id)]


def test_a_peers_reset_closes_both_directions() -> None:
    client, server, (stream_id,) = opened()
    server.reset_stream(stream_id, RstStatus.REFUSED_STREAM)
    client.send_data(stream_id, b"under way")
    assert move(server, client) == [StreamReset(stream_id, RstStatus.REFUSED_STREAM)]
    assert not client.can_send(stream_id)
    with pytest.raises(SpdyStateError):
        client.send_data(stream_id, b"late")
    assert move(client, server) == []  # what was under way is dropped in silence
    assert server.data_to_send() == b""


def test_data_before_our_stream_is_answered_resets_it() -> None:
    client, _ = pair()
    stream_id = client.open_stream({})
    client.data_to_send()
    events = client.receive_data(data_frame_header(stream_id, 1, fin=False) + b"x")
    assert events == [StreamReset(stream_id, RstStatus.PROTOCOL_ERROR, by_peer=False)]
    assert client.data_to_send()


def test_a_server_must_accept_before_it_sends() -> None:
    client, server = pair()
    stream_id = client.open_stream({})
    move(client, server)
    assert not server.can_send(stream_id)
    with pytest.raises(SpdyStateError, match="accepted"):
        server.send_data(stream_id, b"x")


@pytest.mark.parametrize("ids", [[2], [3, 1], [1, 1], [0]])
def test_stream_ids_are_odd_and_rising(ids: list[int]) -> None:
    server, deflate = SpdyConnection(client=False), HeaderDeflater()
    client = SpdyConnection(client=True)
    for stream_id in ids:
        server.receive_data(syn(stream_id, deflate))
    assert server.data_to_send() == control_frame(
        FrameType.RST_STREAM, ids[-1].to_bytes(4, "big") + (1).to_bytes(4, "big")
    )
    assert client.open_streams == frozenset()


def test_a_refused_streams_headers_still_pass_the_shared_inflater() -> None:
    server, deflate = SpdyConnection(client=False, max_streams=1), HeaderDeflater()
    first = server.receive_data(syn(1, deflate))
    refused = server.receive_data(syn(3, deflate))
    server.accept_stream(1, fin=True)
    server.receive_data(data_frame_header(1, 0, fin=True))
    third = server.receive_data(syn(5, deflate))
    assert (len(first), refused, len(third)) == (1, [], 1)
    assert isinstance(third[0], StreamOpened)
    assert third[0].headers == {"streamtype": "x"}


def test_headers_that_inflate_without_end_end_the_connection() -> None:
    deflate = HeaderDeflater()
    bomb = deflate.pack({"a": "b" * 10_000_000})
    assert len(bomb) < 60_000
    server = SpdyConnection(client=False)
    frame = control_frame(FrameType.SYN_STREAM, (1).to_bytes(4, "big") + bytes(6) + bomb)
    (event,) = server.receive_data(frame)
    assert isinstance(event, ConnectionClosed)
    assert event.reason is not None
    assert "inflates beyond" in event.reason
    assert server.data_to_send() == control_frame(
        FrameType.GOAWAY, bytes(4) + (1).to_bytes(4, "big")
    )


def test_an_oversized_control_frame_is_refused_from_its_header_alone() -> None:
    server = SpdyConnection(client=False)
    (event,) = server.receive_data(bytes.fromhex("8003000100ffffff"))
    assert isinstance(event, ConnectionClosed)


def test_a_ping_flood_that_is_never_read_ends_the_connection() -> None:
    server = SpdyConnection(client=False)
    ping = control_frame(FrameType.PING, (1).to_bytes(4, "big"))
    events = server.receive_data(ping * 10_000)
    assert isinstance(events[-1], ConnectionClosed)
    assert len(server.data_to_send()) < 70_000


@pytest.mark.parametrize("accepted", [True, False])
def test_streams_that_come_and_go_while_nothing_is_read_end_the_connection(accepted: bool) -> None:
    client, server = SpdyConnection(client=True), SpdyConnection(client=False)
    for _ in range(10_000):
        stream = client.open_stream({"streamtype": "error"})
        server.receive_data(client.data_to_send())
        if accepted:
            server.accept_stream(stream)
        else:
            server.reset_stream(stream, RstStatus.REFUSED_STREAM)
        client.reset_stream(stream)
        events = server.receive_data(client.data_to_send())
        if server.closed:
            break
    assert isinstance(events[-1], ConnectionClosed) and "faster than it reads" in str(events[-1])
    assert len(server.data_to_send()) < 100_000


def test_a_large_data_frame_is_handed_on_in_pieces() -> None:
    client, _server, (stream_id,) = opened()
    client.receive_data(data_frame_header(stream_id, 0xFFFFFF, fin=True))
    assert client.receive_data(b"abc") == [DataReceived(stream_id, b"abc")]
    rest = client.receive_data(bytes(0xFFFFFF - 3))
    assert rest[-1] == StreamEnded(stream_id)


def test_go_away_refuses_the_streams_the_peer_never_saw() -> None:
    client, server, (first,) = opened()
    server.go_away()
    late = client.open_stream({})
    events = move(server, client)
    assert events == [GoAwayReceived(first, 0), StreamReset(late, RstStatus.REFUSED_STREAM)]
    with pytest.raises(SpdyStateError, match="going away"):
        client.open_stream({})
    assert client.can_send(first)


def test_an_end_of_file_in_the_middle_says_which_streams_were_cut() -> None:
    client, _, ids = opened(2)
    assert ids == [1, 3]
    (event,) = client.receive_eof()
    assert isinstance(event, ConnectionClosed)
    assert event.reason is not None
    assert event.reason.endswith("1, 3")


def test_settings_and_window_updates_change_nothing() -> None:
    client, server, (stream_id,) = opened()
    settings_frame = control_frame(FrameType.SETTINGS, bytes(4))
    window = control_frame(FrameType.WINDOW_UPDATE, stream_id.to_bytes(4, "big") + bytes(4))
    assert server.receive_data(settings_frame + window) == []
    client.send_data(stream_id, bytes(1_000_000))  # no window is waited for
    assert len(joined(move(client, server), stream_id)) == 1_000_000


@given(st.integers(1, 60), st.integers(1, 20))
def test_data_of_no_stream_is_answered_once_a_frame(length: int, piece: int) -> None:
    _, server = pair()
    frame = data_frame_header(9, length, fin=True) + bytes(length)
    for start in range(0, len(frame), piece):
        server.receive_data(frame[start : start + piece])
    reset = (9).to_bytes(4, "big") + int(RstStatus.INVALID_STREAM).to_bytes(4, "big")
    assert server.data_to_send() == control_frame(FrameType.RST_STREAM, reset)
