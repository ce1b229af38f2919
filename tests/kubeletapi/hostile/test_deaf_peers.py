"""Peers that never read, of what never ends: the server, a process of its own, stops taking more,
and its memory does not grow. Neither does it by what they send without reading the answers."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.kubeletapi.hostile.harmless import ENDLESS, ENDLESS_PORT
from tests.kubeletapi.hostile.world import PATIENCE, UPGRADES, upgrade
from vknode.streaming.spdy import SpdyConnection

MIB = 1 << 20
#: What all peers together may cost: what the system and TLS hold for each, and no more.
BOUND = 32 * MIB
PEERS = 4
#: What one peer sends at most without reading: many times more than `BOUND` as Python's objects.
FLOOD = 32 * MIB


@dataclass
class Child:
    process: subprocess.Popen[str]
    port: int
    context: ssl.SSLContext
    peers: ExitStack = field(default_factory=ExitStack)
    #: How it was before anybody came.
    began: dict[str, Any] = field(default_factory=dict)

    def connect(self) -> ssl.SSLSocket:
        """A client that takes as little off the wire as the system lets it."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(PATIENCE)
        raw.connect(("127.0.0.1", self.port))
        tls = self.context.wrap_socket(raw, server_hostname="127.0.0.1")
        return self.peers.enter_context(tls)

    def look(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def require_small(self) -> None:
        """All that came so far has left no more than that."""
        now = self.look()
        assert now["rss"] - self.began["rss"] < BOUND, (self.began, now)

    def until_still(self, began: dict[str, Any], streams: int) -> dict[str, Any]:
        """What it has come to once so many streams run, it has given something since `began`, and
        gives no more."""
        before, give_up = self.look(), time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            time.sleep(0.4)
            now = self.look()
            begun = now["streams"] == streams and now["given"] != began["given"]
            if begun and now["given"] == before["given"]:
                return now
            before = now
        raise AssertionError(f"it goes on and on: {before}")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("deaf")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kubeletapi.hostile.child", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(process.stdout.readline())
        pki = folder / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "all.crt", pki / "all.key")
        found = Child(process, port, context)
        found.began = found.look()
        yield found
        process.stdin.close()
        # It is well: nothing has gone wrong inside, and nothing is left of any of them.
        assert process.wait(2 * PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def child(process: Child) -> Iterator[Child]:
    """With no peer yet, and let go of those of this test afterwards."""
    with process.peers:
        yield process
    give_up = time.monotonic() + PATIENCE
    while process.look()["streams"]:
        assert time.monotonic() < give_up
        time.sleep(0.02)


def follow_logs(tls: ssl.SSLSocket) -> None:
    path = b"/containerLogs/default/web/main?follow=true&stream=Stdout"
    tls.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")


def exec_by_websocket(tls: ssl.SSLSocket) -> None:
    upgrade(tls, endless("exec v5"))


def exec_by_spdy(tls: ssl.SSLSocket) -> None:
    upgrade(tls, endless("exec spdy"))
    tls.sendall(opened({"streamtype": "error"}, {"streamtype": "stdout"}))


def forward_by_spdy(tls: ssl.SSLSocket) -> None:
    upgrade(tls, UPGRADES["forward spdy"])
    tls.sendall(to_endless_port())


def forward_by_tunnel(tls: ssl.SSLSocket) -> None:
    upgrade(tls, UPGRADES["tunnel"])
    data = to_endless_port()
    tls.sendall(bytes((0x82, 0xFE)) + struct.pack(">H", len(data)) + bytes(4) + data)


def endless(way: str) -> bytes:
    return UPGRADES[way].replace(b"command=cat&input=1", b"command=" + ENDLESS.encode())


def opened(*streams: dict[str, str]) -> bytes:
    core = SpdyConnection(client=True)
    for headers in streams:
        core.open_stream(headers)
    return core.data_to_send()


def to_endless_port() -> bytes:
    about = {"port": str(ENDLESS_PORT), "requestid": "1"}
    return opened({"streamtype": "error", **about}, {"streamtype": "data", **about})


@pytest.mark.parametrize(
    "begin", [follow_logs, exec_by_websocket, exec_by_spdy, forward_by_spdy, forward_by_tunnel]
)
def test_what_nobody_reads_is_not_gathered(child: Child, begin: Any) -> None:
    before = child.look()
    for _ in range(PEERS):
        begin(child.connect())
    after = child.until_still(before, PEERS)
    assert sum(after["given"].values()) > sum(before["given"].values())
    child.require_small()


def pipelined_requests(tls: ssl.SSLSocket) -> bytes:
    return b"GET /pods HTTP/1.1\r\nHost: x\r\n\r\n" * 1000


def pipelined_refusals(tls: ssl.SSLSocket) -> bytes:
    return b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1000


def websocket_pings(tls: ssl.SSLSocket) -> bytes:
    upgrade(tls, UPGRADES["exec v5"])
    return (b"\x89\xfd" + bytes(4 + 125)) * 500


def websocket_echo(tls: ssl.SSLSocket) -> bytes:
    upgrade(tls, UPGRADES["exec v5"])
    return (b"\x82\xfe" + struct.pack(">H", 32001) + bytes(4 + 32001)) * 4


def websocket_splinters(tls: ssl.SSLSocket) -> bytes:
    """A message that never ends, in pieces of nothing."""
    upgrade(tls, UPGRADES["exec v5"])
    tls.sendall(b"\x02\x80" + bytes(4))
    return (b"\x00\x80" + bytes(4)) * 10_000


def spdy_pings(tls: ssl.SSLSocket) -> bytes:
    upgrade(tls, UPGRADES["forward spdy"])
    return struct.pack(">HHII", 0x8003, 6, 4, 1) * 5000


def spdy_data_for_nobody(tls: ssl.SSLSocket) -> bytes:
    upgrade(tls, UPGRADES["forward spdy"])
    return struct.pack(">II", 9, 0) * 8000


def spdy_echo(tls: ssl.SSLSocket) -> bytes:
    upgrade(tls, UPGRADES["exec spdy"])
    kinds = [{"streamtype": kind} for kind in ("error", "stdout", "stdin")]
    tls.sendall(opened(*kinds))
    return (struct.pack(">II", 5, 32000) + bytes(32000)) * 4


@pytest.mark.parametrize(
    "begin",
    [
        pipelined_requests,
        pipelined_refusals,
        websocket_pings,
        websocket_echo,
        websocket_splinters,
        spdy_pings,
        spdy_data_for_nobody,
        spdy_echo,
    ],
)
def test_who_only_talks_fills_no_memory(child: Child, begin: Any) -> None:
    tls = child.connect()
    data = begin(tls)
    tls.settimeout(1.0)  # so long it takes nothing more: it waits to be read
    with suppress(TimeoutError, ConnectionError, ssl.SSLError):
        for _ in range(FLOOD // len(data)):
            tls.sendall(data)
    child.require_small()
