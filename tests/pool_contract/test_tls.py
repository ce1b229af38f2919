"""Mutual TLS between agent and pool: who lacks the right certificate gets nothing, and
certificates are renewed under watches and sessions that are open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.pool_contract.fakes import FakeHost, changes, small_spec, snapshot
from tests.support.authority import HOUR, Authority
from tests.support.authority import replace as renew
from vknode.pool.client import PoolClient, SandboxesUpdate
from vknode.pool.endpoint import TlsFiles, parse_endpoint
from vknode.pool.errors import RETRYABLE, PoolFailure
from vknode.pool.server import PoolServer
from vknode.pool.v1 import pool_pb2, pool_pb2_grpc, spec_pb2, status_pb2, stream_pb2

SECRET = b"the content of a Secret"
SOON = 0.02  # seconds between two looks at a client's files


class CountingHost(FakeHost):
    """Remembers that it was asked at all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def create(
        self, spec: spec_pb2.SandboxSpec, owner: str
    ) -> tuple[status_pb2.Sandbox, bool]:
        self.calls.append("create")
        return await super().create(spec, owner)

    async def delete(self, uid: str, grace: float | None, reason: str) -> bool:
        self.calls.append("delete")
        return await super().delete(uid, grace, reason)


class Pool:
    """A pool on TCP, an authority that both sides trust, and clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "ca")
        self.host = CountingHost()
        self.files = self.authority.issue("server", usage="server")
        self.server = PoolServer(self.host, parse_endpoint("127.0.0.1:0"), self.files)
        self.endpoint = ""
        self.said: list[str] = []

    @asynccontextmanager
    async def client(self, files: TlsFiles) -> AsyncIterator[PoolClient]:
        client = PoolClient(
            "az1",
            self.endpoint,
            files,
            on_connected=lambda: self.said.append("connected"),
            on_disconnected=lambda reason: self.said.append(f"disconnected: {reason}"),
            certificate_check_interval=SOON,
        )
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    made = Pool(tmp_path)
    made.endpoint = await made.server.start()
    yield made
    await made.server.stop(0)
    await made.host.sim.close()


def spec() -> spec_pb2.SandboxSpec:
    made = small_spec()
    made.volumes.add(name="secret").files.files.add(path="token", content=SECRET)
    return made


async def until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


# -- who is let in ---------------------------------------------------------------------------


class Listener:
    """Somebody at a pool's address who takes every client, and keeps what it is told."""

    def __init__(self, files: TlsFiles) -> None:
        self.heard = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.cert, files.key)
        self._context.set_alpn_protocols(["h2"])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # A client refuses by closing; in TLS 1.3 the server's handshake is over by then.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(60)
                with self._context.wrap_socket(connection, server_side=True) as talk:
                    self.heard += talk.recv(65536)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


async def ask(endpoint: str, files: TlsFiles) -> PoolFailure:
    """A spec with a Secret in it, sent to somebody who never answers it, but breaks off."""
    client = PoolClient("az1", endpoint, files)
    try:
        with pytest.raises(PoolFailure) as caught:
            await client.create(spec(), "owner", timeout=20)
        return caught.value
    finally:
        await client.close()


@pytest.mark.parametrize(
    "wrong", ["another CA", "expired", "not yet valid", "another name", "a client's certificate"]
)
async def test_a_pool_without_the_right_certificate_is_told_nothing(
    tmp_path: Path, wrong: str
) -> None:
    authority, stranger = Authority(tmp_path, "ca"), Authority(tmp_path, "stranger")
    made = {
        "another CA": lambda: stranger.issue("pool"),
        "expired": lambda: authority.issue("pool", begins=-2 * HOUR, ends=-HOUR),
        "not yet valid": lambda: authority.issue("pool", begins=HOUR, ends=2 * HOUR),
        "another name": lambda: authority.issue("pool", dns="other.example"),
        "a client's certificate": lambda: authority.issue("pool", usage="client"),
    }
    with Listener(made[wrong]()) as listener:
        failure = await ask(listener.endpoint, authority.issue("agent", usage="client"))
        assert failure.kind == RETRYABLE
    assert listener.heard == b""


async def test_the_same_listener_hears_a_client_that_trusts_it(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    authority = Authority(tmp_path, "ca")
    with Listener(authority.issue("pool", usage="server")) as listener:
        await ask(listener.endpoint, authority.issue("agent", usage="client"))
    assert listener.heard.startswith(b"PRI * HTTP/2.0")


async def test_a_server_name_is_expected_in_place_of_the_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    files = authority.issue("server", dns="pool.example")
    host = FakeHost()
    server = PoolServer(host, parse_endpoint("127.0.0.1:0"), files)
    endpoint = await server.start()
    try:
        agent = replace(authority.issue("agent"), server_name="pool.example")
        client = PoolClient("az1", endpoint, agent)
        assert not (await client.delete("uid")).found
        await client.close()
        failure = await ask(endpoint, replace(agent, server_name="other.example"))
        assert failure.kind == RETRYABLE
    finally:
        await server.stop(0)
        await host.sim.close()


@pytest.mark.parametrize(
    "wrong", ["none at all", "another CA", "expired", "not yet valid", "a server's certificate"]
)
async def test_a_client_without_the_right_certificate_gets_nothing(
    pool: Pool, tmp_path: Path, wrong: str
) -> None:
    """A pool's own certificate is no client's: one pool cannot speak to another one."""
    authority, stranger = pool.authority, Authority(tmp_path, "stranger")
    made: dict[str, Callable[[], TlsFiles]] = {
        "another CA": lambda: stranger.issue("agent"),
        "expired": lambda: authority.issue("agent", begins=-2 * HOUR, ends=-HOUR),
        "not yet valid": lambda: authority.issue("agent", begins=HOUR, ends=2 * HOUR),
        "a server's certificate": lambda: authority.issue("agent", usage="server"),
    }
    if wrong == "none at all":
        credentials = grpc.ssl_channel_credentials(authority.pem)
    else:
        files = made[wrong]()
        credentials = grpc.ssl_channel_credentials(
            authority.pem, files.key.read_bytes(), files.cert.read_bytes()
        )
    async with grpc.aio.secure_channel(pool.endpoint, credentials) as channel:
        stub: Any = pool_pb2_grpc.PoolStub(channel)
        health: Any = cast("Any", health_pb2_grpc.HealthStub)(channel)
        calls: list[Callable[[], Any]] = [
            lambda: stub.CreateSandbox(pool_pb2.CreateSandboxRequest(spec=spec()), timeout=20),
            lambda: stub.DeleteSandbox(pool_pb2.DeleteSandboxRequest(uid="u"), timeout=20),
            lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=20),
            lambda: stub.WatchSandboxes(pool_pb2.WatchSandboxesRequest(), timeout=20).read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call()
            assert caught.value.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
    assert pool.host.calls == [] and pool.host.asked == []
    async with pool.client(authority.issue("agent", usage="client")) as client:
        await client.create(spec(), "owner")  # the right one is served all the while
    assert pool.host.calls == ["create"]


# -- renewal ---------------------------------------------------------------------------------


class Watch:
    """A client's sandbox watch that is open."""

    def __init__(self, client: PoolClient) -> None:
        self.updates: list[SandboxesUpdate] = []
        self._task = asyncio.create_task(self._run(client))

    async def _run(self, client: PoolClient) -> None:
        async for update in client.sandboxes():
            self.updates.append(update)

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def uids(self) -> list[str]:
        return [sandbox.uid for update in self.updates for sandbox in update.sandboxes]


async def test_a_clients_renewed_certificate_is_used_without_a_break(pool: Pool) -> None:
    """The watch goes on where it stands, a session stays on its connection until its end."""
    files = pool.authority.issue("agent", usage="client")
    await pool.host.run(["sleep", "600"])
    async with pool.client(files) as client, Watch(client) as watch:
        pool.host.responses.put_nowait(snapshot(7, "a"))
        await until(lambda: watch.uids() == ["a"])
        session = await client.exec(
            stream_pb2.ExecRequest.Start(
                uid="uid-1", container="main", command=["cat"], stdin=True, stdout=True
            )
        )
        before = client.certificate_expires
        pool.authority.issue("agent", usage="client", ends=3 * HOUR, into=files)
        await until(lambda: len(pool.host.asked) == 2)
        assert client.certificate_expires > before
        assert pool.host.asked[1] == ("e1", 7)
        pool.host.responses.put_nowait(changes(8, "b"))
        await until(lambda: watch.uids() == ["a", "b"])
        await session.write(b"still here\n")
        await session.close_write()
        assert b"".join([data async for _, data in session.receive()]) == b"still here\n"
        await session.close()
        assert not (await client.delete("u")).found
        await until(lambda: all(line.closed for line in client._old_lines))
    assert pool.said == ["connected"]


async def test_new_files_of_a_client_that_do_not_work_harm_no_connection(
    pool: Pool, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    files = pool.authority.issue("agent", usage="client")
    good = files.cert.read_bytes(), files.key.read_bytes()
    with capture_logs() as logs:
        async with pool.client(files) as client, Watch(client) as watch:
            pool.host.responses.put_nowait(snapshot(1, "a"))
            await until(lambda: watch.uids() == ["a"])

            def complaints() -> list[str]:
                found = [e for e in logs if e["event"] == "pool_certificates_unusable"]
                return [e["problem"] for e in found]

            renew(files.key, b"half a ren")
            await until(lambda: len(complaints()) == 1)
            stranger.issue("agent", into=files)  # whole, but nobody knows who issued it
            await until(lambda: any("no connection with them" in one for one in complaints()))
            pool.host.responses.put_nowait(changes(2, "b"))
            await until(lambda: watch.uids() == ["a", "b"])
            assert len(pool.host.asked) == 1
            renew(files.key, good[1])
            renew(files.cert, good[0])
            await until(lambda: len(pool.host.asked) == 2)
            assert pool.host.asked[1] == ("e1", 2)
    assert pool.said == ["connected"]
    assert "half a ren" not in str(logs)


async def test_a_servers_renewed_files_count_for_the_next_connection(
    pool: Pool, tmp_path: Path
) -> None:
    """New CA, new certificate: who is connected stays, who comes must know the new ones."""
    old_agent = pool.authority.issue("agent", usage="client")
    fresh = Authority(tmp_path, "fresh")
    new_agent = fresh.issue("new-agent", usage="client")
    async with pool.client(old_agent) as client, Watch(client) as watch:
        pool.host.responses.put_nowait(snapshot(1, "a"))
        await until(lambda: watch.uids() == ["a"])
        fresh.issue("server", usage="server", into=pool.files)
        renew(pool.files.ca, fresh.pem)
        # Who still trusts the old pool, and who only has the old CA's certificate.
        kept = tmp_path / "kept-ca.pem"
        kept.write_bytes(pool.authority.pem)
        for ca in (kept, fresh.ca):
            assert (await ask(pool.endpoint, replace(old_agent, ca=ca))).kind == RETRYABLE
        async with pool.client(new_agent) as other:
            await other.create(spec(), "owner")
        pool.host.responses.put_nowait(changes(2, "b"))
        await until(lambda: watch.uids() == ["a", "b"])
        assert len(pool.host.asked) == 1
    assert pool.host.calls == ["create"]


async def test_half_a_renewal_of_a_server_is_not_used(pool: Pool) -> None:
    agent = pool.authority.issue("agent", usage="client")
    other = pool.authority.issue("other", usage="server")
    with capture_logs() as logs:
        renew(pool.files.key, other.key.read_bytes())
        for _ in range(3):
            async with pool.client(agent) as client:
                await client.create(spec(), "owner")
        renew(pool.files.cert, other.cert.read_bytes())
        async with pool.client(agent) as client:
            await client.create(spec(), "owner")
    events = [entry["event"] for entry in logs if entry["event"].startswith("pool_tls")]
    assert events == ["pool_tls_files_unusable", "pool_tls_files_reloaded"]


async def test_a_connection_that_breaks_comes_back_with_the_files_of_then(pool: Pool) -> None:
    """The pool's CA was changed while nobody was connected any more."""
    files = pool.authority.issue("agent", usage="client")
    fresh = Authority(pool.folder, "fresh")
    server_files = fresh.issue("fresh-server", usage="server")
    client = PoolClient(
        "az1", pool.endpoint, files, on_connected=lambda: pool.said.append("connected")
    )
    try:
        async with Watch(client) as watch:
            pool.host.responses.put_nowait(snapshot(1, "a"))
            await until(lambda: watch.uids() == ["a"])
            await pool.server.stop(0)
            fresh.issue("agent", usage="client", into=files)
            renew(files.ca, fresh.pem)
            again = PoolServer(pool.host, parse_endpoint(pool.endpoint), server_files)
            await again.start()
            try:
                pool.host.responses.put_nowait(changes(2, "b"))
                await until(lambda: watch.uids() == ["a", "b"])
                assert pool.host.asked[-1] == ("e1", 1)
            finally:
                await again.stop(0)
    finally:
        await client.close()
