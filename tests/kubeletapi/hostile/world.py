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
PATIENCE = 20.0
#: A certificate that may do everything, one that may do nothing, none at all.
MAY_ALL, MAY_NOTHING, NOBODY = "may all", "may nothing", "nobody"
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
    unseen: list[str] = field(default_factory=list)

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

    def require_health(self) -> None:
        """It serves, nothing is left of those who have gone, and nothing went wrong inside."""
        give_up = time.monotonic() + PATIENCE
        while self.api.running_streams or self.backend.open:
            assert time.monotonic() < give_up, (
                f"{self.api.running_streams} streams and {self.backend.open} sessions are left"
            )
            time.sleep(0.002)
        with self.connected(MAY_ALL) as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_to_end(tls).endswith(b"\r\n\r\nok")
        assert [line for line in self.log if is_fault(line)] == []
        assert self.unseen == []


def is_fault(line: MutableMapping[str, Any]) -> bool:
    return line["event"] in _FAULTS and line["log_level"] in ("error", "warning")


def read_to_end(tls: ssl.SSLSocket) -> bytes:
    """All that comes until the other side ends it, within `PATIENCE`."""
    data = b""
    with suppress(ConnectionError, ssl.SSLEOFError):
        while piece := tls.recv(1 << 16):
            data += piece
    return data


@contextmanager
def serving(
    folder: Path, make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> Iterator[World]:
    authority = Authority(folder / "pki")
    settings = make_settings(
        authority, ping_interval=0.2, max_streams=32, max_message_bytes=64 * 1024
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
