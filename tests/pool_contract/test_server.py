"""Where a pool listens, who may call it, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.pool_contract.fakes import FakeHost, served, small_spec
from tests.support.authority import Authority
from vknode.pool.client import PoolClient
from vknode.pool.endpoint import EndpointError, TlsFiles, parse_endpoint
from vknode.pool.errors import NO_CAPACITY, NOT_FOUND, REFUSED, RETRYABLE, PoolFailure
from vknode.pool.runtimes.base import RuntimeAway
from vknode.pool.server import PoolServer
from vknode.pool.v1 import cell_pb2, spec_pb2


async def test_socket_is_private_and_goes_away_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    async with served(FakeHost(), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_listening_changes_the_mode_of_nothing_else(tmp_path: Path) -> None:
    """Adopted sandboxes are at work already, and make folders for containers."""
    over = False

    async def work() -> list[int]:
        modes: list[int] = []
        while not over:
            folder = tmp_path / str(len(modes))
            folder.mkdir(mode=0o750)
            modes.append(stat.S_IMODE(folder.stat().st_mode))
            await asyncio.sleep(0)
        return modes

    working = asyncio.create_task(work())
    async with served(FakeHost(), tmp_path / "pool.sock"):
        over = True
        assert set(await working) == {0o750}


async def test_stale_socket_is_replaced_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # a killed process leaves the file behind
    async with served(FakeHost(), path) as endpoint:
        with pytest.raises(EndpointError, match="in use"):
            await PoolServer(FakeHost(), parse_endpoint(endpoint)).start()
        async with _client(endpoint) as client:  # and the first still serves
            assert not (await client.delete("uid")).found


async def test_something_else_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(EndpointError, match="no socket"):
        await PoolServer(FakeHost(), parse_endpoint(f"unix:{path}")).start()
    assert path.read_text() == "data"
    with pytest.raises(EndpointError, match="no directory"):
        await PoolServer(FakeHost(), parse_endpoint(f"unix:{tmp_path}/none/x")).start()


def test_tcp_without_tls_is_refused() -> None:
    with pytest.raises(EndpointError, match=r"--tls-cert.*--tls-client-ca"):
        PoolServer(FakeHost(), parse_endpoint("127.0.0.1:0"))
    with pytest.raises(EndpointError, match="mutual TLS"):
        PoolClient("p", "127.0.0.1:1")


@pytest.mark.parametrize("text", ["", "unix:", "host", "host:port", "host:70000", "unix://x/y"])
def test_wrong_endpoints_are_told(text: str) -> None:
    with pytest.raises(EndpointError):
        parse_endpoint(text)
    with pytest.raises(EndpointError, match="107"):
        parse_endpoint("unix:/" + "x" * 120)


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    files = Authority(tmp_path, "ca").issue("server")
    server = PoolServer(FakeHost(), parse_endpoint("127.0.0.1:0"), files)
    endpoint = await server.start()
    try:
        with pytest.raises(EndpointError, match="cannot listen"):
            await PoolServer(FakeHost(), parse_endpoint(endpoint), files).start()
    finally:
        await server.stop(0)


async def test_unusable_tls_files_are_named(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "cert", tmp_path / "key", tmp_path / "ca")

    def refused(what: str) -> None:
        with pytest.raises(EndpointError, match=what):
            PoolServer(FakeHost(), parse_endpoint("127.0.0.1:0"), files)
        with pytest.raises(EndpointError, match=what):
            PoolClient("p", "127.0.0.1:1", files)

    refused("cert: cannot be read")
    files.cert.write_text("hello")
    refused("cert: holds no PEM block")
    authority = Authority(tmp_path, "ca")
    authority.issue("server", into=files)
    refused("ca: cannot be read")
    files.ca.write_bytes(authority.pem)
    other = authority.issue("other")
    files.key.write_bytes(other.key.read_bytes())
    refused("key: is not the key of .*cert")
    files.key.write_text("-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----\n")
    with pytest.raises(EndpointError, match="key: is no key") as caught:
        PoolServer(FakeHost(), parse_endpoint("127.0.0.1:0"), files)
    assert "MIIsecret" not in str(caught.value)


async def test_health_follows_the_cells(tmp_path: Path) -> None:
    host = FakeHost()
    async with served(host, tmp_path / "s") as endpoint, grpc.aio.insecure_channel(endpoint) as ch:
        watch = health_pb2_grpc.HealthStub(ch).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]  # its stubs lack the methods

        async def until(wanted: int) -> None:
            async with asyncio.timeout(60):
                while (await watch.read()).status != wanted:
                    pass

        await until(health_pb2.HealthCheckResponse.SERVING)
        sick = cell_pb2.Cell(name="z-a", zone="z", health=cell_pb2.HEALTH_UNHEALTHY)
        host.cells.put_nowait(cell_pb2.WatchCellsResponse(cells=[sick]))
        await until(health_pb2.HealthCheckResponse.NOT_SERVING)
        watch.cancel()


async def test_stop_ends_open_watches_within_a_second(tmp_path: Path) -> None:
    host = FakeHost()
    server = PoolServer(host, parse_endpoint(f"unix:{tmp_path}/s"))
    endpoint = await server.start()
    client = PoolClient("p", endpoint)
    ended = asyncio.Event()
    client_watch = PoolClient("p", endpoint, on_disconnected=lambda reason: ended.set())
    watching = asyncio.create_task(_drain(client_watch))
    try:
        async with asyncio.timeout(60):
            while not client_watch.connected:
                await asyncio.sleep(0.01)
        begin = time.monotonic()
        await server.stop()
        assert time.monotonic() - begin < 20, "its watch would never end by itself"
        await asyncio.wait_for(ended.wait(), 60)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.close()
        await client_watch.close()


async def _drain(client: PoolClient) -> None:
    async for _ in client.cells():
        pass


async def test_every_failure_is_typed(tmp_path: Path) -> None:
    host = FakeHost()
    async with served(host, tmp_path / "s") as endpoint, _client(endpoint) as client:
        spec = small_spec()
        host.failure = PoolFailure(NO_CAPACITY, "full", retry_after=1.5)
        failure = await _failure(client, spec)
        assert (failure.kind, failure.message, failure.retry_after) == (NO_CAPACITY, "full", 1.5)
        host.failure = RuntimeAway("gone")
        assert (await _failure(client, spec)).kind == RETRYABLE
        host.failure = ValueError("the secret is 42")
        failure = await _failure(client, spec)
        assert failure.kind == RETRYABLE and "42" not in str(failure)
        host.failure = None
        spec.containers[0].image = ""
        failure = await _failure(client, spec)
        assert (failure.kind, failure.field) == (REFUSED, "containers[0].image")


async def test_of_an_update_only_what_identifies_is_looked_at_before_its_sandbox(
    tmp_path: Path,
) -> None:
    """The rest may be settled, and stays as it is whatever the update says."""
    async with served(FakeHost(), tmp_path / "s") as endpoint, _client(endpoint) as client:

        async def failure(spec: spec_pb2.SandboxSpec) -> PoolFailure:
            with pytest.raises(PoolFailure) as caught:
                await client.update(spec)
            return caught.value

        spec = small_spec()
        spec.tenant = ""
        spec.restart_policy = spec_pb2.RESTART_POLICY_UNSPECIFIED
        spec.network.hostname = "x" * 64
        spec.containers[0].image_pull_policy = spec_pb2.IMAGE_PULL_POLICY_UNSPECIFIED
        spec.volumes.add(name="of-a-newer-agent")
        assert (await failure(spec)).kind == NOT_FOUND
        spec.volumes.add(name="of-a-newer-agent")
        refused = await failure(spec)
        assert (refused.kind, refused.field) == (REFUSED, "volumes[1].name")
        del spec.volumes[:]
        spec.containers.append(spec.containers[0])
        assert (await failure(spec)).field == "containers[1].name"
        spec.uid = "../up"
        assert (await failure(spec)).field == "uid"


async def test_a_spec_of_many_megabytes_goes_through(tmp_path: Path) -> None:
    async with served(FakeHost(), tmp_path / "s") as endpoint, _client(endpoint) as client:
        spec = small_spec()
        files = spec.volumes.add(name="big").files.files
        for number in range(12):
            files.add(path=f"f{number}", content=bytes(1024 * 1024))
        sandbox, _ = await client.create(spec, "owner")
        assert sandbox.uid == spec.uid
        for number in range(12, 17):
            files.add(path=f"f{number}", content=bytes(1024 * 1024))
        failure = await _failure(client, spec)
        assert (failure.kind, failure.field) == (REFUSED, "volumes")


async def _failure(client: PoolClient, spec: spec_pb2.SandboxSpec) -> PoolFailure:
    with pytest.raises(PoolFailure) as caught:
        await client.create(spec, "owner")
    return caught.value


class _client:
    """A client that is closed at the end."""

    def __init__(self, endpoint: str, tls: TlsFiles | None = None) -> None:
        self._made = endpoint, tls

    async def __aenter__(self) -> PoolClient:
        self._client = PoolClient("test", *self._made)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
