"""Requests that no client of ours makes and anybody may: each has an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import structlog

from tests.kubeletapi.conftest import Served, client_context
from tests.kubeletapi.reviewers import API_SERVER
from tests.kubeletapi.test_stats import NODE
from vknode.kubeletapi import LogOptions, PodView

PATIENCE = 60.0
EXEC = "/exec/default/web/main?command=true&output=1"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SPDY = b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded"


async def say(served: Served, request: str, headers: bytes, body: bytes = b"") -> tuple[int, str]:
    """The answer, whose end must be that of the connection, and its text."""
    pair = served.authority.issue("odd", API_SERVER)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        int(served.url.rpartition(":")[2]),
        ssl=client_context(served.authority, pair),
    )
    try:
        writer.write(request.encode() + b"\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
    finally:
        writer.transport.abort()
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), text.decode()


@pytest.mark.parametrize("path", ["/healthz", "/nothing", EXEC])
@pytest.mark.parametrize("expected", [b"\xff\xfe", b"202-accepted"])
async def test_what_nobody_can_do_is_refused_as_by_go(
    served: Served, path: str, expected: bytes
) -> None:
    assert await say(served, f"GET {path} HTTP/1.1", b"Expect: " + expected) == (417, "")


@pytest.mark.parametrize("path", [EXEC, "/attach/default/web/main?output=1"])
@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("Sec-WebSocket-Protocol", WEBSOCKET + b"Sec-WebSocket-Protocol: \xff"),
        ("Sec-WebSocket-Key", WEBSOCKET.replace(b"dGhl", b"\xff\xffhl")[:-2]),
        ("Sec-WebSocket-Version", WEBSOCKET.replace(b"13", b"\xff")[:-2]),
        ("X-Stream-Protocol-Version", SPDY + b"X-Stream-Protocol-Version: v4\xff"),
    ],
)
async def test_a_handshake_of_other_bytes_than_text_is_refused_by_name(
    served: Served, path: str, name: str, headers: bytes
) -> None:
    served.backend.add("web")
    close = headers.replace(b"Connection: Upgrade", b"Connection: Upgrade, close")
    told = (400, f"header {name} must be ASCII")
    assert await say(served, f"GET {path} HTTP/1.1", close) == told
    assert await say(served, "GET /portForward/default/web?port=80 HTTP/1.1", close) == told


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (FORM, b"only_cpu_and_memory=true&\xff=%ff", 200),
        (FORM + b"; charset=nobody-knows", b"only_cpu_and_memory=true", 200),
        (b"Content-Type: multipart/form-data", b"no form at all", 200),
        (b"Content-Type: multipart/form-data; boundary=x", b"no form at all", 200),
        (b"Content-Encoding: gzip\r\n" + FORM, b"not packed", 400),
    ],
)
async def test_a_form_that_is_none_is_no_fault_of_the_server(
    served: Served, headers: bytes, body: bytes, status: int
) -> None:
    served.nodes.usage["node-1"] = NODE
    length = b"\r\nConnection: close\r\nContent-Length: %d" % len(body)
    found, text = await say(served, "POST /stats/summary HTTP/1.1", headers + length, body)
    assert found == status, text
    if b"=true" in body:
        assert "network" not in text and '"cpu"' in text


async def test_a_log_for_a_client_of_http_1_0_ends_with_the_connection(served: Served) -> None:
    served.backend.add("web")

    async def logs(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"one\n"
        yield b"two\n"

    served.backend.logs = logs
    path = "GET /containerLogs/default/web/main HTTP/1.0"
    assert await say(served, path, b"Accept: */*") == (200, "one\ntwo\n")


@pytest.mark.parametrize("below", ["logs", "run", "debug/pprof", "debug/flags/v"])
async def test_what_is_switched_off_is_so_for_every_path_below(served: Served, below: str) -> None:
    status, text = await say(served, f"PUT /{below}/a%0Ab/c HTTP/1.1", b"Connection: close")
    assert status == 405 and text.endswith("disabled.\n")


async def test_what_is_no_http_does_not_fill_the_log(served: Served) -> None:
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            assert (await say(served, "NO HTTP AT ALL", b"Accept: */*"))[0] == 400
    told = [line for line in lines if line["event"].startswith("kubelet_api_")]
    assert len(told) <= 1, told  # another test's may have been just before
    assert all(line["log_level"] == "info" for line in told)
