"""One question over HTTP/1.1 and as much of its answer as a probe looks at. Pure.

h11 writes and reads. Here is what else a kubelet's users see of Go's client: its words for
what is no answer, a first line refused before there is another, an end after 10 KiB.

Where h11 0.16 and Go 1.26 still differ:

  stricter  several blanks before a status code, one before a header's colon, a NUL in a
            reason, a status below 100 and headers over 256 KiB (Go: 10 MiB) are refused
  looser    control characters in a header's value, `Content-Length: 2, 2` and chunks from
            HTTP/1.0 are taken (Go shows those chunks as the body)
  words     fewer of them for broken chunks and trailers
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import h11

from vknode.pool.probes import gowords

MAX_BODY = 10 * 1024  # pkg/probe/http: maxRespBodyLength
_MAX_HEAD = 256 * 1024
_VERSION = re.compile(r"HTTP/\d\.\d", re.ASCII)
_CODE = re.compile(r"\d{3}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")


class BadResponse(Exception):
    """Not HTTP, or cut off."""


class HttpTalk:
    """A `Talk`. `status` is 0 until the answer's headers are there."""

    def __init__(self, target: str, headers: Sequence[tuple[str, str]]) -> None:
        self.begun = False
        self.done = False
        self.status = 0
        self.location = ""
        self.body = bytearray()
        self._target = _bytes(target)
        self._headers = [(_bytes(name), _bytes(value)) for name, value in headers]
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._head = bytearray()  # what h11 may refuse without saying why

    def begin(self) -> bytes:
        self.begun = True
        request = h11.Request(method="GET", target="/", headers=self._headers)
        sent = self._h11.send(request) + self._h11.send(h11.EndOfMessage())
        # Go leaves blanks and UTF-8 in a query as they are, which h11 does not.
        return sent.replace(b"/", self._target, 1)

    def feed(self, data: bytes) -> bytes:
        """Raises BadResponse."""
        if data and not self.done:
            if not self.status:
                self._head += data
            self._h11.receive_data(data)
            self._read()
        return b""

    def eof(self) -> None:
        """The other side closed. Raises BadResponse where something is missing."""
        if self.status:
            self._h11.receive_data(b"")
            self._read()
            return
        if self._head and b"\n" not in self._head:
            _read_status(self._head)  # Go takes it for a line
        heard = self._head or self._h11.their_http_version
        raise BadResponse("unexpected EOF" if heard else "EOF")

    def _read(self) -> None:
        while not self.done and (self.status or self._first_line()):
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise BadResponse(self._fault(error)) from None
            match event:
                case h11.InformationalResponse():
                    self._head = bytearray(self._h11.trailing_data[0])
                case h11.Response(status_code=status, headers=headers):
                    self.status = status
                    places = [value for name, value in headers if name == b"location"]
                    self.location = _text(places[0]) if places else ""
                case h11.Data(data=data):
                    self.body += data
                    self.done = len(self.body) >= MAX_BODY
                    del self.body[MAX_BODY:]
                case h11.EndOfMessage():
                    self.done = True
                case _:
                    return

    def _first_line(self) -> bool:
        """Whether it is there for h11 to read. Raises BadResponse: what is no HTTP may never
        send the empty line that h11 would wait for."""
        end = self._head.find(b"\n")
        if end < 0:
            return len(self._head) > _MAX_HEAD
        if _read_status(self._head[:end]) == 101:
            # Nobody asked for it, so h11 refuses it. For Go it is a last word like another.
            self.status, self.done = 101, True
        return not self.done

    def _fault(self, error: h11.RemoteProtocolError) -> str:
        if self.status:
            if self._h11.trailing_data[1]:
                return "unexpected EOF"
            size = "chunk header" in str(error)
            return "invalid byte in chunk length" if size else "malformed chunked encoding"
        if error.error_status_hint == 431:
            return f"net/http: server response headers exceeded {_MAX_HEAD} bytes; aborted"
        return _fault_of_headers(self._head) or f"malformed HTTP response: {error}"


def _read_status(line: bytes | bytearray) -> int:
    """net/http's ReadResponse. Raises BadResponse."""
    text = _text(line.removesuffix(b"\r"))
    protocol, blank, rest = text.partition(" ")
    if not blank:
        raise BadResponse(f"malformed HTTP response {gowords.quote(text)}")
    code = rest.lstrip(" ").partition(" ")[0]
    if not _CODE.fullmatch(code):
        raise BadResponse(f"malformed HTTP status code {gowords.quote(code)}")
    if not _VERSION.fullmatch(protocol):
        raise BadResponse(f"malformed HTTP version {gowords.quote(protocol)}")
    return int(code)


def _fault_of_headers(head: bytes | bytearray) -> str:
    """Go's words for the most frequent that h11 does not take."""
    for raw in head.split(b"\n")[1:]:
        line = _text(raw.removesuffix(b"\r"))
        name, colon, value = line.partition(":")
        if not line:
            break
        if line[0] in " \t":
            continue
        if not colon:
            return f"malformed MIME header: missing colon: {gowords.quote(line)}"
        if not _NAME.fullmatch(name) or _CONTROL.search(value):
            return f"malformed MIME header line: {gowords.quote(line)}"
        match name.lower(), value.strip(" \t"):
            case "content-length", length if not re.fullmatch("[0-9]{1,20}", length):
                return f"bad Content-Length {gowords.quote(length)}"
            case "transfer-encoding", coding if coding.lower() != "chunked":
                return f"unsupported transfer encoding: {gowords.quote(coding)}"
    return ""


def _text(raw: bytes | bytearray) -> str:
    return raw.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
