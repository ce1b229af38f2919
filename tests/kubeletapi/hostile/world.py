"""A real server over TLS in a thread of its own, and clients that block."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from tests.clusters import ClusterThread
from tests.kubeletapi.conftest import client_context, make_settings
from tests.kubeletapi.hostile.harmless import Harmless
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from tests.kubeletapi.test_stats import NODE
from vknode.devcluster.pki import Authority, KeyPair
from vknode.kubeletapi import KubeletApi

#: Seconds within which the server answers, ends the connection or lets go of what it had.
PATIENCE = 60.0
#: A certificate that may do everything, one that may do nothing, none at all.
MAY_ALL, MAY_NOTHING, NOBODY = "may all", "may nothing", "nobody"
# Bytes; a session may never come to its end.
_ENOUGH = 1 << 20
# Events that tell of a defect of ours.
_FAULTS = frozenset(
    (
        "kubelet_api_handshake_failed",
        "kubelet_api_http",
        "port_forward_failed",
        "session_failed",
        "stream_end_failed",
    )
)


@dataclass
class World:
    api: KubeletApi
    backend: Harmless
    thread: ClusterThread
    authority: Authority
    pairs: dict[str, KeyPair | None]
    log: list[MutableMapping[str, Any]]
    port: int = 0
    #: What reached the loop's last resort: exceptions that nobody has seen.
    unseen: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._contexts = {
            who: client_context(self.authority, pair) for who, pair in self.pairs.items()
        }

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @contextmanager
    def connected(self, who: str) -> Iterator[ssl.SSLSocket]:
        """A connection, which is cut at the end without a good-bye."""
        raw = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._contexts[who].wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            yield tls

    def require_let_go(self) -> None:
        """Nothing is left of those who have gone."""
        give_up = time.monotonic() + PATIENCE
        while any(left := (self.api.running_streams, self.backend.open, self._connections())):
            assert time.monotonic() < give_up, f"streams, sessions, connections left: {left}"
            time.sleep(0.002)

    def _connections(self) -> int:
        assert self.api._runner is not None and self.api._runner.server is not None
        return len(self.api._runner.server._connections)

    def require_health(self) -> None:
        """It serves, nothing is left of those who have gone, and nothing went wrong inside."""
        self.require_let_go()
        with self.connected(MAY_ALL) as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_to_end(tls).endswith(b"\r\n\r\nok")
        faults = [line for line in self.log if is_fault(line)] + self.unseen
        self.log.clear()
        self.unseen.clear()
        assert not faults, faults


def is_fault(line: MutableMapping[str, Any]) -> bool:
    return line["event"] in _FAULTS and line["log_level"] in ("error", "warning")


def read_to_end(tls: ssl.SSLSocket) -> bytes:
    """All that comes until the other side ends it, within `PATIENCE`."""
    data = b""
    with suppress(ConnectionError, ssl.SSLEOFError):
        while piece := tls.recv(1 << 16):
            data += piece
    return data


def read_until_quiet(tls: ssl.SSLSocket, seconds: float = 0.03) -> bytes:
    """What comes until the other side ends it, or says nothing for a moment."""
    tls.settimeout(seconds)
    data = b""
    with suppress(ConnectionError, ssl.SSLEOFError, TimeoutError):
        while len(data) < _ENOUGH and (piece := tls.recv(1 << 16)):
            data += piece
    return data


@contextmanager
def serving(
    folder: Path,
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    **changes: object,
) -> Iterator[World]:
    authority = Authority(folder / "pki")
    settings = make_settings(
        authority, ping_interval=0.2, max_streams=32, max_message_bytes=64 * 1024, **changes
    )
    nodes = LocalNodes()
    nodes.usage["node-1"] = NODE
    pairs = {
        MAY_ALL: authority.issue("all", API_SERVER),
        MAY_NOTHING: authority.issue("nothing", "mallory"),
        NOBODY: None,
    }
    thread = ClusterThread(make_loop)
    try:
        with capture_logs() as log:
            backend = Harmless()
            world = World(
                KubeletApi(backend, nodes, settings, Rules()),
                backend,
                thread,
                authority,
                pairs,
                log,
            )
            thread.loop.set_exception_handler(lambda _loop, what: world.unseen.append(str(what)))
            world.port = thread.run(world.api.start())
            try:
                yield world
            finally:
                thread.run(world.api.stop())
    finally:
        thread.close()


_WEBSOCKET = (
    b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: "
)
_SPDY = (
    b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: "
)
_EXEC = b"/exec/default/web/main?command=cat&input=1&output=1"
_TERMINAL = b"/attach/default/web/terminal?input=1&output=1&tty=1"
_FORWARD = b"/portForward/default/web"
#: Requests that are upgraded, by what they begin.
UPGRADES = {
    "exec v5": b"GET " + _EXEC + _WEBSOCKET + b"v5.channel.k8s.io",
    "exec base64": b"GET " + _EXEC + _WEBSOCKET + b"v4.base64.channel.k8s.io",
    "attach v4": b"GET " + _TERMINAL + _WEBSOCKET + b"v4.channel.k8s.io",
    "ports": b"GET " + _FORWARD + b"?port=80,49" + _WEBSOCKET + b"v4.channel.k8s.io",
    "tunnel": b"GET " + _FORWARD + _WEBSOCKET + b"SPDY/3.1+portforward.k8s.io",
    "exec spdy": b"POST " + _EXEC + _SPDY + b"v4.channel.k8s.io",
    "attach spdy": b"POST " + _TERMINAL + _SPDY + b"v4.channel.k8s.io",
    "forward spdy": b"POST " + _FORWARD + _SPDY + b"portforward.k8s.io",
}


def upgrade(tls: ssl.SSLSocket, request: bytes) -> None:
    """Requires it to be upgraded; what comes behind the answer's head may be lost."""
    tls.sendall(request + b"\r\n\r\n")
    said = b""
    while b"\r\n\r\n" not in said and (piece := tls.recv(4096)):
        said += piece
    assert said.startswith(b"HTTP/1.1 101 "), said
