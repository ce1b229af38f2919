"""One call of grpc.health.v1.Health/Check over HTTP/2, without TLS. Pure.

h2 speaks HTTP/2; gRPC's PROTOCOL-HTTP2.md has what is said with it. States:

  opening   preface, SETTINGS and the request are sent; no SETTINGS has come: not `ready`
  asked     `ready`: who answers speaks HTTP/2
  done      `code` is the call's end, and `serving` the answer where that is OK

grpcio's own client is not used: a channel for one question costs more than twice the CPU
(2.4 ms a probe on two cores, 2026). h2 4.4 is stricter than grpc-go 1.82: a second HEADERS
in the middle, a wrong content-length or headers over 64 KiB break the connection, where
grpc-go ends the call as Internal or takes them; and the words for what breaks one are fewer.
"""

from __future__ import annotations

import http
import re
import struct
from collections.abc import Iterator
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from vknode.pool.probes import gowords
from vknode.pool.probes.http_request import VERSION

_STREAM = 1
_SETTINGS, _GOAWAY = 4, 7  # frames' types (RFC 9113, 6)
_MAX_FRAME = 16384
_MAX_HEADERS = 64 * 1024
_MAX_FOREIGN = 1024  # of what is no gRPC, as grpc-go tells it
# Where a proxy answers instead of the service (gRPC's http-grpc-status-mapping.md).
_OF_HTTP = {
    400: "Internal",
    401: "Unauthenticated",
    403: "PermissionDenied",
    404: "Unimplemented",
    429: "Unavailable",
    502: "Unavailable",
    503: "Unavailable",
    504: "Unavailable",
}
# Go's names of gRPC's codes, by number.
_CODES = {code.value[0]: code.name.title().replace("_", "") for code in grpc.StatusCode}
_CODES |= {0: "OK", 1: "Canceled"}
# grpc-go's http2ErrConvTab; the others that HTTP/2 knows are Internal.
_OF_RESET: dict[int, str] = {
    ErrorCodes.FLOW_CONTROL_ERROR: "ResourceExhausted",
    ErrorCodes.REFUSED_STREAM: "Unavailable",
    ErrorCodes.CANCEL: "Canceled",
    ErrorCodes.ENHANCE_YOUR_CALM: "ResourceExhausted",
    ErrorCodes.INADEQUATE_SECURITY: "PermissionDenied",
}


class NotHttp2(Exception):
    """Whoever answers speaks something else."""


class HealthCall:
    """A `Talk`. `code` and `message` are the call's end, `serving` the answer's status."""

    def __init__(self, authority: str, service: str, timeout_seconds: float) -> None:
        self.ready = False
        self.code = ""
        self.message = ""
        self.serving = 0
        self._request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        self._sent_headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("user-agent", f"kube-probe/{VERSION}"),
            ("te", "trailers"),
            ("grpc-timeout", f"{max(1, round(timeout_seconds * 1000))}m"),
        )
        # Like grpc-go, we look at four headers and let the others be as they are.
        self._h2 = H2Connection(H2Configuration(validate_inbound_headers=False))
        self._buffer = bytearray()
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    @property
    def done(self) -> bool:
        return bool(self.code)

    def begin(self) -> bytes:
        """Raises h2's ProtocolError where the service's name is longer than a frame."""
        ours = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADERS}
        self._h2.local_settings = Settings(client=True, initial_values=ours)
        self._h2.initiate_connection()
        self._h2.send_headers(_STREAM, self._sent_headers)
        message = struct.pack(">BI", 0, len(self._request)) + self._request
        self._h2.send_data(_STREAM, message, end_stream=True)
        return self._h2.data_to_send()

    def feed(self, data: bytes) -> bytes:
        """Raises NotHttp2."""
        self._buffer += data
        try:
            for frame in self._frames():
                for event in self._h2.receive_data(frame):
                    self._take(event)
        except ProtocolError as error:
            if not self.ready:
                raise NotHttp2 from None
            reason = f"connection error: {error.error_code.name}"
            self._end("Unavailable", f"error reading from server: {reason}")
        return self._h2.data_to_send()

    def eof(self) -> None:
        """Raises NotHttp2."""
        if not self.ready:
            raise NotHttp2
        if not self.done:
            self._end("Unavailable", "error reading from server: EOF")

    def _frames(self) -> Iterator[bytes]:
        """Whole ones. Left to itself, h2 waits for all of whatever length the first bytes of
        something else than HTTP/2 seem to tell; and after a GOAWAY it takes no answer,
        though a server that drains still gives it."""
        while len(self._buffer) >= 9 and not self.done:
            length, kind = int.from_bytes(self._buffer[:3], "big"), self._buffer[3]
            if length > _MAX_FRAME or (not self.ready and kind != _SETTINGS):
                raise ProtocolError
            if len(self._buffer) < 9 + length:
                return
            frame = bytes(self._buffer[: 9 + length])
            del self._buffer[: 9 + length]
            if kind != _GOAWAY:
                yield frame
            elif int.from_bytes(frame[9:13], "big") & 0x7FFFFFFF < _STREAM:
                self._end("Unavailable", "the connection is draining")

    def _take(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self.ready = True
            case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
                self._headers |= {_text(name): _text(value) for name, value in headers}
            case DataReceived(data=data):
                self._body += data
                if len(self._body) >= _MAX_FOREIGN and not self._is_grpc():
                    self._finish()
                elif len(self._body) > _MAX_FRAME:
                    self._end("ResourceExhausted", "the answer is too long")
            case StreamEnded() if not self.done:
                self._finish()
            case StreamReset(error_code=error):
                code = "Internal" if isinstance(error, ErrorCodes) else "Unknown"
                name = getattr(error, "name", f"unknown error code 0x{error:x}")
                text = f"stream terminated by RST_STREAM with error code: {name}"
                self._end(_OF_RESET.get(error, code), text)

    def _is_grpc(self) -> bool:
        kind = self._headers.get("content-type", "")
        return re.fullmatch(r"application/grpc([+;].*)?", kind) is not None

    def _finish(self) -> None:
        number = _number(self._headers.get("grpc-status", ""), 2)  # Unknown
        if not self._is_grpc():
            self._end(*self._foreign_answer())
        elif "grpc-status" not in self._headers:
            self._end("Internal", "server closed the stream without sending trailers")
        elif number:
            message = unquote(self._headers.get("grpc-message", ""))
            self._end(_CODES.get(number, f"Code({number})"), message)
        else:
            try:
                answer = health_pb2.HealthCheckResponse.FromString(bytes(self._body[5:]))
                self.serving = answer.status
                self._end("OK", "")
            except Exception as error:  # protobuf's own kind of error
                self._end("Internal", f"failed to unmarshal the received message: {error}")

    def _foreign_answer(self) -> tuple[str, str]:
        number = _number(self._headers.get(":status", ""), 0)
        try:
            phrase = http.HTTPStatus(number).phrase
        except ValueError:
            phrase = ""
        message = f"unexpected HTTP status code received from server: {number} ({phrase}); "
        if kind := self._headers.get("content-type"):
            message += f"transport: received unexpected content-type {gowords.quote(kind)}"
        else:
            message += "malformed header: missing HTTP content-type"
        if self._body:
            data = self._body[:_MAX_FOREIGN].decode(errors="surrogateescape")
            message += f"\ndata: {gowords.quote(data)}"
        return _OF_HTTP.get(number, "Unknown"), message

    def _end(self, code: str, message: str) -> None:
        self.code, self.message = code, message


def _number(text: str, otherwise: int) -> int:
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else otherwise


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
