"""A loop that is closed takes the goodbyes of its TLS connections along, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from vknode.devcluster.pki import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def silent_port(authority: Authority) -> Iterator[int]:
    """Of a TLS server that greets, and then says nothing more, not even goodbye."""
    pair = authority.issue("server", "server", ips=["127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert, pair.key)
    greeted: list[ssl.SSLSocket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            greeted.append(tls.wrap_socket(connection, server_side=True))

        thread = threading.Thread(target=greet)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(60)
    for one in greeted:
        one.close()


@pytest.mark.parametrize("closed", [True, False])
def test_only_what_nobody_closed_is_found(
    authority: Authority, silent_port: int, closed: bool
) -> None:
    async def connect() -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol,
            "127.0.0.1",
            silent_port,
            ssl=ssl.create_default_context(cafile=str(authority.cert)),
        )
        if closed:
            transport.close()

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(connect())
        gc.collect()
    told = [one for one in caught if "unclosed transport" in str(one.message)]
    assert bool(told) != closed
