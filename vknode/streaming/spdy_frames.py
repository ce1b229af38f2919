"""SPDY/3.1 frames: an incremental parser, encoders, and the header block compression.

Source of the layout: the SPDY/3.1 draft; where it leaves room, moby/spdystream, the peer at the
other end of every Kubernetes stream. Control frames are collected whole (they are bounded to
`MAX_CONTROL_PAYLOAD`); data frames may carry 16 MiB, so their bytes are handed on as they come
and no frame is ever held in memory.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vknode.streaming.spdy_dictionary import DICTIONARY

VERSION: Final = 3
FLAG_FIN: Final = 0x01
FLAG_UNIDIRECTIONAL: Final = 0x02

# Peers open streams with a handful of short headers; these bounds are generous for them and
# small for an attacker.
MAX_CONTROL_PAYLOAD: Final = 64 * 1024
"""Bytes of one control frame after its 8-byte header."""
MAX_INFLATED_HEADERS: Final = 64 * 1024
"""Bytes of one header block after inflation."""
MAX_HEADERS: Final = 256
"""Names in one header block."""
MAX_DATA_PAYLOAD: Final = 32 * 1024
"""Bytes of one data frame that we send: the peer allocates each frame whole."""

_HEADER: Final = struct.Struct("!II")
_U32: Final = struct.Struct("!I")
_LENGTH_MASK: Final = 0xFFFFFF
_STREAM_MASK: Final = 0x7FFFFFFF


class FrameType(IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class RstStatus(IntEnum):
    """Why a stream was reset (SPDY/3.1, section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class GoAwayStatus(IntEnum):
    """Why a connection ends (SPDY/3.1, section 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class SpdyProtocolError(Exception):
    """The peer broke the protocol in a way that ends the whole connection."""


class HeaderBlockError(Exception):
    """A header block inflated well but its content is wrong: only its stream is in error."""


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """One whole control frame; `payload` is still packed (see `HeaderInflater`)."""

    type: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DataChunk:
    """Some bytes of a data frame; `last` is set on its last chunk, `fin` too if it has FIN."""

    stream_id: int
    data: bytes
    fin: bool
    last: bool


class FrameParser:
    """Cuts a byte stream into frames, wherever the stream was split.

    Raises `SpdyProtocolError` from `feed` for a wrong version or an oversized control frame;
    the parser must not be used afterwards.
    """

    def __init__(self, max_control_payload: int = MAX_CONTROL_PAYLOAD) -> None:
        self._max_control_payload = max_control_payload
        self._buffer = bytearray()
        self._data_left = 0
        self._data_stream = 0
        self._data_fin = False

    def feed(self, data: bytes) -> Iterator[ControlFrame | DataChunk]:
        """Yields the frames that `data` completes. Exhaust it before the next call."""
        buffer = self._buffer
        buffer += data
        offset = 0
        try:
            while True:
                available = len(buffer) - offset
                if self._data_left:
                    if not available:
                        return
                    size = min(available, self._data_left)
                    chunk = bytes(memoryview(buffer)[offset : offset + size])
                    offset += size
                    self._data_left -= size
                    last = not self._data_left
                    yield DataChunk(self._data_stream, chunk, self._data_fin and last, last)
                    continue
                if available < _HEADER.size:
                    return
                first, second = _HEADER.unpack_from(buffer, offset)
                flags, length = second >> 24, second & _LENGTH_MASK
                if not first & 0x80000000:
                    offset += _HEADER.size
                    self._data_stream, self._data_left = first, length
                    self._data_fin = bool(flags & FLAG_FIN)
                    if not length:
                        yield DataChunk(first, b"", self._data_fin, True)
                    continue
                self._check_control(first, length)
                if available < _HEADER.size + length:
                    return
                start = offset + _HEADER.size
                offset = start + length
                payload = bytes(memoryview(buffer)[start:offset])
                yield ControlFrame(first & 0xFFFF, flags, payload)
        finally:
            del buffer[:offset]

    def _check_control(self, first: int, length: int) -> None:
        version = (first >> 16) & 0x7FFF
        if version != VERSION:
            raise SpdyProtocolError(f"SPDY version {version} in a control frame, want {VERSION}")
        if length > self._max_control_payload:
            raise SpdyProtocolError(
                f"control frame of {length} bytes, the limit is {self._max_control_payload}"
            )


class HeaderDeflater:
    """Packs header blocks for one direction of one connection."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=DICTIONARY)

    def pack(self, headers: Mapping[str, str]) -> bytes:
        """Several values of one name are one string, joined by NUL, as on the wire."""
        parts = [_U32.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower(), value):
                raw = text.encode("utf-8", "surrogateescape")
                parts += (_U32.pack(len(raw)), raw)
        block = self._zlib.compress(b"".join(parts))
        return block + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderInflater:
    """Unpacks header blocks for one direction of one connection.

    All blocks share one zlib stream, so every block must pass here in order, those of refused
    streams too.
    """

    def __init__(self, max_inflated: int = MAX_INFLATED_HEADERS) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)
        self._max_inflated = max_inflated

    def unpack(self, block: bytes) -> dict[str, str]:
        """Returns the headers with lower-case names.

        Raises `SpdyProtocolError` if the shared zlib stream is broken or the block is too
        large, and `HeaderBlockError` if only this block's content is wrong.
        """
        try:
            raw = self._zlib.decompress(block, self._max_inflated + 1)
        except zlib.error as error:
            raise SpdyProtocolError(f"header block cannot be inflated: {error}") from None
        if len(raw) > self._max_inflated or self._zlib.unconsumed_tail:
            raise SpdyProtocolError(f"header block inflates beyond {self._max_inflated} bytes")
        if self._zlib.eof:
            raise SpdyProtocolError("the peer ended the shared header compression")
        return _parse_headers(raw)


def _parse_headers(raw: bytes) -> dict[str, str]:
    offset = 0

    def take(size: int) -> bytes:
        nonlocal offset
        piece = raw[offset : offset + size]
        if len(piece) != size:
            raise HeaderBlockError("header block is truncated")
        offset += size
        return piece

    def take_number() -> int:
        return int.from_bytes(take(4), "big")

    headers: dict[str, str] = {}
    count = take_number()
    if count > MAX_HEADERS:
        raise HeaderBlockError(f"{count} headers in one block, the limit is {MAX_HEADERS}")
    for _ in range(count):
        name = take(take_number()).decode("utf-8", "surrogateescape")
        value = take(take_number()).decode("utf-8", "surrogateescape")
        if not name or name != name.lower():
            raise HeaderBlockError("a header name is empty or not in lower case")
        if name in headers:
            raise HeaderBlockError("a header name occurs twice in one block")
        headers[name] = value
    if offset != len(raw):
        raise HeaderBlockError("bytes are left over after the last header")
    return headers


def control_frame(type_: FrameType, payload: bytes, flags: int = 0) -> bytes:
    return _HEADER.pack(0x80000000 | VERSION << 16 | type_, flags << 24 | len(payload)) + payload


def data_frame_header(stream_id: int, length: int, *, fin: bool) -> bytes:
    return _HEADER.pack(stream_id & _STREAM_MASK, (FLAG_FIN if fin else 0) << 24 | length)
