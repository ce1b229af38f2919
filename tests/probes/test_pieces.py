"""However an answer is cut into pieces, it is the same answer; Go's words and numbers."""

from __future__ import annotations

import contextlib
import itertools
import struct

import h11
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import example, given
from hypothesis import strategies as st

from vknode.pool.probes import gowords
from vknode.pool.probes.health_call import HealthCall, NotHttp2
from vknode.pool.probes.http_request import BadRequest, Request, Url
from vknode.pool.probes.http_talk import MAX_BODY, BadResponse, HttpTalk
from vknode.pool.v1 import spec_pb2

_CHUNKED = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n"
_X = b"x" * MAX_BODY
# Status, Location and body; or why it is refused, and whether in the body.
_ANSWERS: dict[bytes, tuple[int, str, bytes] | tuple[str, bool]] = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": (200, "", b"hello"),
    b"HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 302 Found\nLocation: /x\nContent-Length: 0\n\n": (
        302,
        "/x",
        b"",
    ),
    b"HTTP/1.1 200\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nhi": (200, "", b"hi"),
    _CHUNKED + b"10\r\n0123456789abcdef\r\n0\r\n\r\n": (500, "", b"abc0123456789abcdef"),
    _CHUNKED + b"0\r\nX-Sum: 1\r\nX-End: 2\r\n\r\n": (500, "", b"abc"),
    _CHUNKED + b"zz\r\n": ("invalid byte in chunk length", True),
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end": (200, "", b"until the end"),
    b"HTTP/1.1 200 OK\r\n\r\n" + _X + b"more": (200, "", _X),
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: it\r\n\r\n": (101, "", b""),
    b"HTTP/1.1 100 Continue\r\n\r\nSSH-2.0\r\n": ('malformed HTTP response "SSH-2.0"', False),
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n": (
        'malformed MIME header: missing colon: "no colon"',
        False,
    ),
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": (
        "malformed HTTP response: conflicting Content-Length headers",
        False,
    ),
    b"\x15\x03\x02": ('malformed HTTP response "\\x15\\x03\\x02"', False),
    b"caf\xc3\xa9": ('malformed HTTP response "café"', False),
    b"HTTP/1.1 200 OK": ("unexpected EOF", False),
    b"": ("EOF", False),
}


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@given(st.sampled_from(list(_ANSWERS)), st.lists(st.integers(0, 20_000), max_size=8))
@example(_CHUNKED + b"0\r\nX-Sum: 1\r\nX-End: 2\r\n\r\n", list(range(200)))
def test_an_answer_may_come_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    talk = HttpTalk("/", [("Host", "web.test")])
    talk.begin()
    found: object
    try:
        for piece in _pieces(data, cuts):
            talk.feed(piece)
        # Who tells an answer's end need not close the connection.
        assert talk.done == (talk.status > 0 and not data.startswith(b"HTTP/1.0"))
        talk.eof()
        found = talk.status, talk.location, bytes(talk.body)
    except BadResponse as error:
        found = str(error), talk.status > 0
    assert found == _ANSWERS[data]


@pytest.mark.parametrize("start", [_CHUNKED + b"5\r\nab", _CHUNKED + b"0\r\nX: 1\r\n"])
def test_an_answer_that_ends_early_is_told(start: bytes) -> None:
    talk = HttpTalk("/", [("Host", "web.test")])
    talk.begin()
    talk.feed(start)
    with pytest.raises(BadResponse, match=r"^unexpected EOF$"):
        talk.eof()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_clear_refusal(data: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", _CHUNKED):
        talk = HttpTalk("/", [("Host", "web.test")])
        talk.begin()
        with contextlib.suppress(BadResponse):
            talk.feed(start + data)
            talk.eof()
            assert talk.done and talk.status


def test_headers_without_end_are_refused() -> None:
    talk = HttpTalk("/", [("Host", "web.test")])
    talk.begin()
    with pytest.raises(BadResponse, match="server response headers exceeded 262144 bytes"):
        for _ in range(10):
            talk.feed(b"x" * 65536)


_NAMES = st.sampled_from(["X-A", "x-a", "Host", "User-Agent", "Accept", "Connection", "Upgrade"])


@given(
    st.lists(st.tuples(_NAMES | st.text(max_size=5), st.text(max_size=9)), max_size=4),
    st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cc", "Cs"]), max_size=9),
)
def test_headers_are_sent_so_that_a_server_reads_them_or_refused(
    headers: list[tuple[str, str]], query: str
) -> None:
    made = [spec_pb2.Handler.HttpHeader(name=name, value=value) for name, value in headers]
    url = Url("http", "10.0.0.1", 80, f"/x?{query}")
    try:
        sent = Request(made, "probe").headers(url)
    except BadRequest:
        return
    line, rest = HttpTalk(url.line_target, sent).begin().split(b"\r\n", 1)
    assert line == f"GET /x?{query} HTTP/1.1".encode()
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\n" + rest)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert [(n.decode(), v.decode()) for n, v in request.headers.raw_items()] == sent
    assert isinstance(server.next_event(), h11.EndOfMessage)


_GRPC = [(":status", "200"), ("content-type", "application/grpc")]
_ENDED = [("grpc-status", "0"), ("grpc-message", "")]
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def _frame(kind: int, payload: bytes, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, 0, stream) + payload


def _answer(headers: list[tuple[str, str]], body: bytes, between: bytes = b"") -> bytes:
    """What a server says; `between` its SETTINGS and its headers."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(HealthCall("10.0.0.1:1", "", 1).begin())
    settings = server.data_to_send()
    server.send_headers(1, headers)
    server.send_data(1, body, pad_length=9)
    server.send_headers(1, _ENDED, end_stream=True)
    return settings + between + server.data_to_send()


_SERVING = b"\x00\x00\x00\x00\x02\x08\x01"
_GO_AWAY = _frame(7, struct.pack(">II", 2**31 - 1, 0)) + _frame(6, b"12345678")
_CALLS = {
    _answer(_GRPC, _SERVING): "OK ",
    _answer([*_GRPC, *((f"h-{i}", "v" * 900) for i in range(40))], _SERVING): "OK ",
    # A server that drains still answers whom it has heard.
    _answer(_GRPC, _SERVING, _GO_AWAY): "OK ",
    _answer([(":status", "404"), ("content-type", "text/plain")], b"none\n"): (
        "Unimplemented unexpected HTTP status code received from server: 404 (Not Found); "
        'transport: received unexpected content-type "text/plain"\ndata: "none\\n"'
    ),
    _SETTINGS + _frame(7, bytes(8)): "Unavailable the connection is draining",
    _SETTINGS + _frame(3, b"\0\0\0\x0b", 1): (
        "ResourceExhausted stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM"
    ),
    _SETTINGS + b"HTTP/1.1 400 Bad Request\r\n\r\n": (
        "Unavailable error reading from server: connection error: PROTOCOL_ERROR"
    ),
    _SETTINGS: "Unavailable error reading from server: EOF",
    _frame(6, b"12345678") + _SETTINGS: "no HTTP/2",
    b"HTTP/1.1 400 Bad Request\r\n\r\n": "no HTTP/2",
}


@given(st.sampled_from(list(_CALLS)), st.lists(st.integers(0, 50_000), max_size=8))
def test_a_health_answer_may_come_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    call = HealthCall("10.0.0.1:1", "", 1)
    call.begin()
    try:
        for piece in _pieces(data, cuts):
            call.feed(piece)
        call.eof()
        found = f"{call.code} {call.message}"
    except NotHttp2:
        found = "no HTTP/2"
    assert found == _CALLS[data]
    assert call.serving == (found == "OK ")


@given(st.binary(max_size=300))
def test_any_bytes_end_a_health_call_or_leave_it_waiting(data: bytes) -> None:
    call = HealthCall("10.0.0.1:1", "", 1)
    call.begin()
    with contextlib.suppress(NotHttp2):
        call.feed(_SETTINGS + data)
        call.eof()
    assert call.code != "OK"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (90, "1m30s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert gowords.duration(seconds) == text


def test_text_is_quoted_as_go_does() -> None:
    assert gowords.quote('a"\\\n\x01é\u2028') == '"a\\"\\\\\\n\\x01é\\u2028"'
