"""A running kubelet API over local processes, and clients with certificates of a CA."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from vknode.devcluster.pki import Authority, KeyPair
from vknode.kubeletapi import KubeletApi, KubeletApiSettings

try:
    import uvloop
except ImportError:  # it is an extra
    uvloop = None  # type: ignore[assignment]  # told apart below

#: Both loops that a program may run on: their TLS transports differ.
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if uvloop is not None:
    LOOPS["uvloop"] = uvloop.new_event_loop


@dataclass
class Served:
    """A started server, its backend, and a session with the API server's certificate."""

    api: KubeletApi
    backend: LocalBackend
    url: str
    http: aiohttp.ClientSession
    authority: Authority
    nodes: LocalNodes

    async def get(self, path: str, port: int = 0, **query: str) -> tuple[int, str]:
        """`port` 0 is the one that all nodes share."""
        url = f"https://127.0.0.1:{port}" if port else self.url
        async with self.http.get(url + path, params=query) as response:
            return response.status, await response.text()


def client_context(authority: Authority, pair: KeyPair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.cert))
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def make_settings(authority: Authority, **changes: object) -> KubeletApiSettings:
    serving = authority.issue("serving", "vknode-agent", ips=["127.0.0.1"])
    values: dict[str, object] = {
        "serving_cert": serving.cert,
        "serving_key": serving.key,
        "client_ca": authority.cert,
        "address": "127.0.0.1",
        "port": 0,
        **changes,
    }
    return KubeletApiSettings(**values)  # type: ignore[arg-type]  # a test's keywords


# Here the test's own child processes or its client need asyncio's loop: uvloop starts none with
# a controlling terminal, refuses what is written to a child that has ended, and keeps a
# connection open until what waits to be sent has left.
ON_ASYNCIO_ALONE = {
    "test_a_terminal",
    "test_a_terminal_with_resize",
    "test_a_terminal_over_spdy_has_the_clients_size",
    "test_the_spec_decides_whether_there_is_a_terminal",
    "test_input_after_the_commands_end_is_dropped",
    "test_a_command_that_does_not_read_stops_the_client",
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    alone = getattr(item, "originalname", item.name) in ON_ASYNCIO_ALONE
    return {"asyncio": LOOPS["asyncio"]} if alone else LOOPS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Nobody listens at it, and nobody else gets it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
async def served(tmp_path: Path, authority: Authority) -> AsyncIterator[Served]:
    backend = LocalBackend(tmp_path / "rootfs")
    backend.root.mkdir()
    settings = make_settings(authority, ping_interval=0.2, max_streams=4, stop_timeout=30.0)
    nodes = LocalNodes()
    api = KubeletApi(backend, nodes, settings, Rules())
    port = await api.start()
    client = authority.issue("client", API_SERVER)
    connector = aiohttp.TCPConnector(ssl=client_context(authority, client))
    async with aiohttp.ClientSession(connector=connector) as http:
        yield Served(api, backend, f"https://127.0.0.1:{port}", http, authority, nodes)
    await api.stop()
    assert api.running_streams == 0
