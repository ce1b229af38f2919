"""A SPDY/3.1 connection without IO, for both roles.

Theory of operation
-------------------
The owner moves bytes: what it reads goes into `receive_data`, which returns events; after every
call it writes what `data_to_send` returns. Nothing here blocks, waits or knows the time.

Kubernetes' peers (moby/spdystream) have no flow control, and neither has this: SETTINGS and
WINDOW_UPDATE are read and ignored, and a window is never waited for. Backpressure is TCP's: stop
reading while the events of the last read are not consumed, and await the socket's drain before
the next `send_data`. Data frames are handed on in the pieces in which they arrive.

A stream is in one of these states; the two directions close apart from each other:

  state            entered by                        may send data   data may arrive
  ---------------  --------------------------------  --------------  -------------------------
  opening          open_stream (we wait for reply)   yes             no: reset PROTOCOL_ERROR
  offered          peer's SYN_STREAM                 no: accept it   yes (peers do not wait)
  open             SYN_REPLY, either way             yes             yes
  half-closed      our FIN (fin=True)                no              yes
   (local)
  half-closed      peer's FIN → StreamEnded          yes             no: reset ALREADY_CLOSED
   (remote)
  closed           both FINs, or RST either way      no              dropped in silence, for it
                                                                     was under way

The connection is open, then `draining` after a GOAWAY in either direction (no new streams; the
old ones live on), then closed by `ConnectionClosed`, always the last event. moby/spdystream stops
reading once it has *received* a GOAWAY, so send ours only when nothing more is to be said. At
the end of an exec containerd writes the status, resets (CANCEL) the error stream and whatever
else is open, and sends GOAWAY: a client must take a reset or GOAWAY after the status, or the end
of file, as the end of every stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vknode.streaming.spdy_frames import (
    FLAG_FIN,
    FLAG_UNIDIRECTIONAL,
    MAX_CONTROL_PAYLOAD,
    MAX_DATA_PAYLOAD,
    MAX_INFLATED_HEADERS,
    ControlFrame,
    DataChunk,
    FrameParser,
    FrameType,
    GoAwayStatus,
    HeaderBlockError,
    HeaderDeflater,
    HeaderInflater,
    RstStatus,
    SpdyProtocolError,
    control_frame,
    data_frame_header,
)

__all__ = [
    "ConnectionClosed",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "GoAwayStatus",
    "HeadersReceived",
    "PingAcknowledged",
    "RstStatus",
    "SpdyConnection",
    "SpdyStateError",
    "StreamEnded",
    "StreamOpened",
    "StreamReplied",
    "StreamReset",
]

_MAX_ID: Final = 0x7FFFFFFF
_MAX_PROVOKED_OUTPUT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream: answer with `accept_stream` or `reset_stream`.

    `headers` has lower-case names; several values of one name are joined by NUL.
    """

    stream_id: int
    headers: Mapping[str, str]
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted the stream that we opened."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HeadersReceived:
    """More headers on an open stream (no Kubernetes peer sends them)."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataReceived:
    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer will send no more on this stream (its FIN)."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions; `by_peer` is False if we found the fault."""

    stream_id: int
    status: int
    by_peer: bool = True


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """The answer to our `ping`. (The peer's pings are answered without an event.)"""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer opens and accepts no more streams; 0 is a normal end."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The last event. `reason` is None for an end of file with no stream left open."""

    reason: str | None = None


Event = (
    StreamOpened
    | StreamReplied
    | HeadersReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | PingAcknowledged
    | GoAwayReceived
    | ConnectionClosed
)


class SpdyStateError(Exception):
    """The caller asked for something that the stream's or connection's state forbids."""


class _Stream:
    __slots__ = ("accepted", "by_peer", "local_open", "remote_open")

    def __init__(self, *, by_peer: bool, local_open: bool, remote_open: bool) -> None:
        self.by_peer = by_peer
        self.accepted = False
        self.local_open = local_open
        self.remote_open = remote_open


class SpdyConnection:
    """One SPDY/3.1 connection, after the HTTP upgrade. See the module's text.

    `max_streams` bounds how many streams the *peer* may have open at once; more are refused.
    """

    def __init__(
        self,
        *,
        client: bool,
        max_streams: int = 1024,
        max_control_payload: int = MAX_CONTROL_PAYLOAD,
        max_inflated_headers: int = MAX_INFLATED_HEADERS,
    ) -> None:
        self._parity = 1 if client else 0
        self._next_id = 1 if client else 2
        self._next_ping = self._next_id
        self._last_peer_id = 0
        self._max_streams = max_streams
        self._streams: dict[int, _Stream] = {}
        self._peer_streams = 0
        self._parser = FrameParser(max_control_payload)
        self._inflate = HeaderInflater(max_inflated_headers)
        self._deflate = HeaderDeflater()
        self._out: list[bytes] = []
        self._provoked = 0
        self._goaway_sent = False
        self._goaway_received = False
        self._closed = False
        self._events: list[Event] = []

    # --- what the owner looks at ---

    @property
    def closed(self) -> bool:
        """True once `ConnectionClosed` was returned."""
        return self._closed

    @property
    def open_streams(self) -> frozenset[int]:
        """The ids of the streams that are not closed in both directions."""
        return frozenset(self._streams)

    def can_send(self, stream_id: int) -> bool:
        """Whether `send_data` on this stream would be accepted now."""
        stream = self._streams.get(stream_id)
        if self._closed or stream is None or not stream.local_open:
            return False
        return stream.accepted or not stream.by_peer

    # --- what the owner asks for ---

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Opens a stream and returns its id; data may follow at once.

        Raises `SpdyStateError` after a GOAWAY or the end, or when the ids are used up.
        """
        self._require_open()
        if self._goaway_received or self._goaway_sent:
            raise SpdyStateError("no new streams: the connection is going away")
        stream_id = self._next_id
        if stream_id > _MAX_ID:
            raise SpdyStateError("no new streams: the stream ids of this connection are used up")
        self._next_id += 2
        self._streams[stream_id] = _Stream(by_peer=False, local_open=not fin, remote_open=True)
        payload = b"".join((stream_id.to_bytes(4, "big"), bytes(6), self._deflate.pack(headers)))
        self._out.append(control_frame(FrameType.SYN_STREAM, payload, FLAG_FIN if fin else 0))
        return stream_id

    def accept_stream(
        self, stream_id: int, headers: Mapping[str, str] | None = None, *, fin: bool = False
    ) -> None:
        """Accepts a stream that `StreamOpened` told of; must come before data is sent on it."""
        self._require_open()
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # it was reset while the owner made up its mind
        if not stream.by_peer or stream.accepted:
            raise SpdyStateError(f"stream {stream_id} is not waiting for an answer")
        stream.accepted = True
        payload = stream_id.to_bytes(4, "big") + self._deflate.pack(headers or {})
        frame = control_frame(FrameType.SYN_REPLY, payload, FLAG_FIN if fin else 0)
        self._out.append(frame)
        self._provoked += len(frame)
        if fin:
            self._close_local(stream_id, stream)

    def send_data(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Queues data, cut into frames of at most 32 KiB; `fin` half-closes the stream.

        Raises `SpdyStateError` if `can_send` is False: a stream can be reset by the peer at any
        time, so look at that (or at the events) first.
        """
        self._require_open()
        stream = self._streams.get(stream_id)
        if stream is None or not stream.local_open:
            raise SpdyStateError(f"stream {stream_id} is closed for sending")
        if stream.by_peer and not stream.accepted:
            raise SpdyStateError(f"stream {stream_id} must be accepted before data is sent on it")
        view = memoryview(data)
        for start in range(0, len(data), MAX_DATA_PAYLOAD):
            piece = view[start : start + MAX_DATA_PAYLOAD]
            last = fin and start + len(piece) == len(data)
            self._out.append(data_frame_header(stream_id, len(piece), fin=last))
            self._out.append(bytes(piece))
        if fin and not data:
            self._out.append(data_frame_header(stream_id, 0, fin=True))
        if fin:
            self._close_local(stream_id, stream)

    def reset_stream(self, stream_id: int, status: int = RstStatus.CANCEL) -> None:
        """Ends a stream in both directions; does nothing if it has already ended."""
        self._require_open()
        if stream_id in self._streams:
            self._drop(stream_id)
            self._send_reset(stream_id, status)

    def ping(self) -> int:
        """Queues a ping and returns the id that its `PingAcknowledged` will carry."""
        self._require_open()
        ping_id = self._next_ping
        self._next_ping = ping_id + 2 if ping_id + 2 <= _MAX_ID else 2 - self._parity
        self._out.append(control_frame(FrameType.PING, ping_id.to_bytes(4, "big")))
        return ping_id

    def go_away(self, status: int = GoAwayStatus.OK) -> None:
        """Says that no more streams will be taken. Queue everything else first."""
        if self._goaway_sent or self._closed:
            return
        self._goaway_sent = True
        payload = self._last_peer_id.to_bytes(4, "big") + int(status).to_bytes(4, "big")
        self._out.append(control_frame(FrameType.GOAWAY, payload))

    def data_to_send(self) -> bytes:
        """Takes what is queued for the socket; empty if there is nothing."""
        data = b"".join(self._out)
        self._out.clear()
        self._provoked = 0
        return data

    # --- what comes from the peer ---

    def receive_data(self, data: bytes) -> list[Event]:
        """Takes bytes from the socket. Never raises: a broken peer gives `ConnectionClosed`."""
        if self._closed:
            return []
        try:
            self._require_that_it_reads()
            for frame in self._parser.feed(data):
                if isinstance(frame, DataChunk):
                    self._on_data(frame)
                else:
                    self._on_control(frame)
        except SpdyProtocolError as error:
            self.go_away(GoAwayStatus.PROTOCOL_ERROR)
            self._end(str(error))
        return self._take_events()

    def receive_eof(self) -> list[Event]:
        """The socket ended: `ConnectionClosed` with a reason if streams were cut off."""
        if not self._closed:
            reason = None
            if self._streams and not (self._goaway_received or self._goaway_sent):
                ids = ", ".join(map(str, sorted(self._streams)))
                reason = f"the peer closed the connection with open streams: {ids}"
            self._end(reason)
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _on_data(self, frame: DataChunk) -> None:
        stream_id = frame.stream_id
        stream = self._streams.get(stream_id)
        if stream is None:
            if frame.last and not self._was_used(stream_id):
                # One answer a frame, in however many pieces it came.
                self._send_reset(stream_id, RstStatus.INVALID_STREAM, automatic=True)
            return
        if not stream.accepted and not stream.by_peer:
            self._fault(stream_id, RstStatus.PROTOCOL_ERROR)
        elif not stream.remote_open:
            self._fault(stream_id, RstStatus.STREAM_ALREADY_CLOSED)
        else:
            if frame.data:
                self._events.append(DataReceived(stream_id, frame.data))
            if frame.fin:
                self._close_remote(stream_id, stream)

    def _on_control(self, frame: ControlFrame) -> None:
        payload = frame.payload
        match frame.type:
            case FrameType.SYN_STREAM:
                self._on_syn_stream(frame)
            case FrameType.SYN_REPLY | FrameType.HEADERS:
                self._on_headers(frame)
            case FrameType.RST_STREAM:
                stream_id, status = self._numbers(frame, 2)
                if stream_id & _MAX_ID in self._streams:
                    self._drop(stream_id & _MAX_ID)
                    self._events.append(StreamReset(stream_id & _MAX_ID, status))
            case FrameType.PING:
                (ping_id,) = self._numbers(frame, 1)
                if ping_id % 2 == self._parity:
                    self._events.append(PingAcknowledged(ping_id))
                else:
                    self._queue_automatic(control_frame(FrameType.PING, payload))
            case FrameType.GOAWAY:
                last, status = self._numbers(frame, 2)
                self._on_go_away(last & _MAX_ID, status)
            case _:
                pass  # SETTINGS, WINDOW_UPDATE and unknown types: to be ignored (section 2.2.1)

    def _on_syn_stream(self, frame: ControlFrame) -> None:
        if len(frame.payload) < 10:
            raise SpdyProtocolError("SYN_STREAM is too short")
        stream_id = int.from_bytes(frame.payload[:4], "big") & _MAX_ID
        try:
            headers = self._inflate.unpack(frame.payload[10:])
        except HeaderBlockError:
            headers = None
        if self._goaway_sent:
            return
        expected_parity = 1 - self._parity
        if stream_id % 2 != expected_parity or stream_id <= self._last_peer_id:
            # The stream that had this id, if there was one, is in doubt too.
            if stream_id in self._streams:
                self._drop(stream_id)
                self._events.append(StreamReset(stream_id, RstStatus.PROTOCOL_ERROR, by_peer=False))
            self._send_reset(stream_id, RstStatus.PROTOCOL_ERROR, automatic=True)
            return
        self._last_peer_id = stream_id
        if headers is None:
            self._send_reset(stream_id, RstStatus.PROTOCOL_ERROR, automatic=True)
            return
        if self._peer_streams >= self._max_streams:
            self._send_reset(stream_id, RstStatus.REFUSED_STREAM, automatic=True)
            return
        unidirectional = bool(frame.flags & FLAG_UNIDIRECTIONAL)
        stream = _Stream(by_peer=True, local_open=not unidirectional, remote_open=True)
        self._streams[stream_id] = stream
        self._peer_streams += 1
        self._events.append(StreamOpened(stream_id, headers, unidirectional))
        if frame.flags & FLAG_FIN:
            self._close_remote(stream_id, stream)

    def _on_headers(self, frame: ControlFrame) -> None:
        if len(frame.payload) < 4:
            raise SpdyProtocolError("SYN_REPLY or HEADERS is too short")
        stream_id = int.from_bytes(frame.payload[:4], "big") & _MAX_ID
        headers: dict[str, str] | None
        try:
            headers = self._inflate.unpack(frame.payload[4:])
        except HeaderBlockError:
            headers = None
        stream = self._streams.get(stream_id)
        if stream is None:
            if not self._was_used(stream_id):
                self._send_reset(stream_id, RstStatus.INVALID_STREAM, automatic=True)
            return
        reply = frame.type == FrameType.SYN_REPLY
        if headers is None or (reply and stream.by_peer):
            self._fault(stream_id, RstStatus.PROTOCOL_ERROR)
        elif reply and stream.accepted:
            self._fault(stream_id, RstStatus.STREAM_IN_USE)
        elif not stream.remote_open:
            self._fault(stream_id, RstStatus.STREAM_ALREADY_CLOSED)
        elif not reply and not stream.accepted and not stream.by_peer:
            self._fault(stream_id, RstStatus.PROTOCOL_ERROR)
        else:
            if reply:
                stream.accepted = True
                self._events.append(StreamReplied(stream_id, headers))
            else:
                self._events.append(HeadersReceived(stream_id, headers))
            if frame.flags & FLAG_FIN:
                self._close_remote(stream_id, stream)

    def _on_go_away(self, last_stream_id: int, status: int) -> None:
        self._goaway_received = True
        self._events.append(GoAwayReceived(last_stream_id, status))
        for stream_id, stream in list(self._streams.items()):
            if not stream.by_peer and stream_id > last_stream_id:
                self._drop(stream_id)
                self._events.append(StreamReset(stream_id, RstStatus.REFUSED_STREAM))

    # --- helpers ---

    def _numbers(self, frame: ControlFrame, count: int) -> list[int]:
        if len(frame.payload) != 4 * count:
            raise SpdyProtocolError(
                f"{FrameType(frame.type).name} has {len(frame.payload)} bytes, want {4 * count}"
            )
        return [int.from_bytes(frame.payload[i : i + 4], "big") for i in range(0, 4 * count, 4)]

    def _was_used(self, stream_id: int) -> bool:
        if stream_id % 2 == self._parity:
            return 0 < stream_id < self._next_id
        return 0 < stream_id <= self._last_peer_id

    def _close_local(self, stream_id: int, stream: _Stream) -> None:
        stream.local_open = False
        if not stream.remote_open:
            self._drop(stream_id)

    def _close_remote(self, stream_id: int, stream: _Stream) -> None:
        stream.remote_open = False
        self._events.append(StreamEnded(stream_id))
        if not stream.local_open:
            self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        if self._streams.pop(stream_id).by_peer:
            self._peer_streams -= 1

    def _fault(self, stream_id: int, status: RstStatus) -> None:
        self._drop(stream_id)
        self._send_reset(stream_id, status, automatic=True)
        self._events.append(StreamReset(stream_id, status, by_peer=False))

    def _send_reset(self, stream_id: int, status: int, *, automatic: bool = False) -> None:
        payload = stream_id.to_bytes(4, "big") + int(status).to_bytes(4, "big")
        frame = control_frame(FrameType.RST_STREAM, payload)
        if automatic:
            self._queue_automatic(frame)
        else:
            self._out.append(frame)
            self._provoked += len(frame)

    def _queue_automatic(self, frame: bytes) -> None:
        """Queues an answer that the peer provoked; a flood of those ends the connection."""
        self._provoked += len(frame)
        self._require_that_it_reads()
        self._out.append(frame)

    def _require_that_it_reads(self) -> None:
        """What the owner answered to the peer's streams counts, too: a peer can open and reset
        them without end."""
        if self._provoked > _MAX_PROVOKED_OUTPUT:
            raise SpdyProtocolError("the peer provokes answers faster than it reads them")

    def _end(self, reason: str | None) -> None:
        self._closed = True
        self._streams.clear()
        self._peer_streams = 0
        self._events.append(ConnectionClosed(reason))

    def _require_open(self) -> None:
        if self._closed:
            raise SpdyStateError("the connection is closed")
