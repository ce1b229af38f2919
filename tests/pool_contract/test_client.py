"""The agent's client: watches that heal, streams with backpressure."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from tests.pool_contract.fakes import FakeHost, changes, served, snapshot
from vknode.pool.client import Backoff, PoolClient, SandboxesUpdate
from vknode.pool.endpoint import parse_endpoint
from vknode.pool.errors import NOT_FOUND, REFUSED, RETRYABLE, PoolFailure, from_rpc_error
from vknode.pool.server import PoolServer
from vknode.pool.v1 import errors_pb2, stream_pb2


class Watcher:
    """Collects what a client's sandbox watch gives."""

    def __init__(self, endpoint: str) -> None:
        self.transitions: list[str] = []
        self.client = PoolClient(
            "az1",
            endpoint,
            on_connected=lambda: self._moved("connected"),
            on_disconnected=lambda reason: self._moved(f"disconnected: {reason}"),
        )
        self.moved = asyncio.Event()
        self.updates: asyncio.Queue[SandboxesUpdate] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    def _moved(self, what: str) -> None:
        self.transitions.append(what)
        self.moved.set()

    async def _run(self) -> None:
        async for update in self.client.sandboxes():
            self.updates.put_nowait(update)

    async def next(self) -> SandboxesUpdate:
        return await asyncio.wait_for(self.updates.get(), 60)

    async def until(self, transitions: int, timeout: float = 60) -> None:
        async with asyncio.timeout(timeout):
            while len(self.transitions) < transitions:
                self.moved.clear()
                await self.moved.wait()

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()


def _uids(update: SandboxesUpdate) -> list[str]:
    return [sandbox.uid for sandbox in update.sandboxes]


async def test_parts_of_a_snapshot_come_as_one(tmp_path: Path) -> None:
    host = FakeHost()
    async with served(host, tmp_path / "s") as endpoint, Watcher(endpoint) as watcher:
        host.responses.put_nowait(snapshot(5, "a", "b", end=False))
        host.responses.put_nowait(snapshot(5, "c"))
        host.responses.put_nowait(changes(6, "d"))
        update = await watcher.next()
        assert update.snapshot and _uids(update) == ["a", "b", "c"]
        update = await watcher.next()
        assert not update.snapshot and _uids(update) == ["d"]


async def test_a_large_snapshot_is_split_on_the_wire_and_joined_again(tmp_path: Path) -> None:
    host = FakeHost()
    uids = [f"uid-{number}" for number in range(12_000)]
    async with served(host, tmp_path / "s") as endpoint, Watcher(endpoint) as watcher:
        response = snapshot(5, *uids)
        response.gone.add(uid="old")
        host.responses.put_nowait(response)
        update = await watcher.next()
        assert _uids(update) == uids
        assert [sandbox.uid for sandbox in update.gone] == ["old"]


async def test_it_comes_back_by_itself_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = FakeHost()
    async with served(first, path) as endpoint:
        watcher = Watcher(endpoint)
        first.responses.put_nowait(snapshot(5, "a"))
        first.responses.put_nowait(changes(8, "b"))
        await watcher.next()
        await watcher.next()
        first.responses.put_nowait(changes(9))  # a heartbeat moves it too
        async with asyncio.timeout(60):
            while not first.responses.empty():
                await asyncio.sleep(0.01)
    async with watcher:
        await watcher.until(2)
        assert watcher.transitions[0] == "connected"
        assert watcher.transitions[1].startswith("disconnected: ")
        assert not watcher.client.connected
        state = watcher.client.watch_states["sandboxes"]
        assert not state.up and state.breaks >= 1
        await asyncio.sleep(0.5)  # away for a while
        second = FakeHost()
        second.responses.put_nowait(changes(12, "c"))
        async with served(second, path):
            begin = time.monotonic()
            update = await watcher.next()
            assert time.monotonic() - begin < 20
            assert _uids(update) == ["c"]
            epoch, revision = second.asked[0]
            assert epoch == "e1" and revision in (8, 9)
            assert watcher.transitions[2:] == ["connected"]
            assert watcher.client.watch_states["sandboxes"].up
    assert not watcher.client.watch_states["sandboxes"].up


def test_a_pool_that_was_there_is_asked_once_a_second_for_a_minute() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(2):
        waited = 0.0
        while waited < 60:
            delay = backoff.next()
            assert delay <= 1.0
            waited += delay
        assert 1.0 < max(backoff.next() for _ in range(10)) <= 5.0
        backoff.reset()  # it is there again


async def test_what_was_not_acted_on_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    host = FakeHost()
    host.responses.put_nowait(snapshot(5, "a"))
    host.responses.put_nowait(changes(6, "b"))
    async with served(host, path) as endpoint:
        client = PoolClient("az1", endpoint)
        watch = client.sandboxes()
        assert (await anext(watch)).snapshot
        assert _uids(await anext(watch)) == ["b"]  # asking for it acted on revision 5
    again = FakeHost()
    again.responses.put_nowait(changes(9, "c"))
    async with served(again, path):
        # Asking once more acts on revision 6.
        assert _uids(await asyncio.wait_for(anext(watch), 60)) == ["c"]
        assert again.asked == [("e1", 6)]
        await watch.aclose()
        await client.close()


async def test_half_a_snapshot_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    host = FakeHost()
    async with served(host, path) as endpoint:
        watcher = Watcher(endpoint)
        host.responses.put_nowait(snapshot(5, "a", end=False))
        await watcher.until(1)
    async with watcher:
        again = FakeHost()
        again.responses.put_nowait(snapshot(2, "b", epoch="e2"))
        async with served(again, path):
            assert _uids(await watcher.next()) == ["b"]
            assert again.asked == [("", 0)]


async def test_a_pool_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with Watcher(f"unix:{path}") as watcher:
        await watcher.until(1)
        await asyncio.sleep(0.6)  # several tries
        assert len(watcher.transitions) == 1
        with pytest.raises(PoolFailure) as caught:
            await watcher.client.delete("uid")
        assert caught.value.kind == RETRYABLE
        host = FakeHost()
        host.responses.put_nowait(snapshot(1, "a"))
        async with served(host, path):
            assert _uids(await watcher.next()) == ["a"]


async def test_a_client_that_leaves_ends_the_hosts_watch(tmp_path: Path) -> None:
    host = FakeHost()
    async with served(host, tmp_path / "s") as endpoint:
        async with Watcher(endpoint) as watcher:
            host.responses.put_nowait(snapshot(1))
            await watcher.next()
            assert host.open_watches == 1
        async with asyncio.timeout(60):
            while host.open_watches:
                await asyncio.sleep(0.01)


async def test_close_ends_watches_without_an_error(tmp_path: Path) -> None:
    async with served(FakeHost(), tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        seen: list[Any] = []

        async def watch() -> None:
            async for update in client.cells():
                seen.append(update)

        task = asyncio.create_task(watch())
        async with asyncio.timeout(60):
            while not seen:
                await asyncio.sleep(0.01)
        await client.close()
        await asyncio.wait_for(task, 60)
        assert [cell.name for cell in seen[0].cells] == ["z-a"]


async def test_a_silent_peer_is_noticed_within_seconds(tmp_path: Path) -> None:
    """A process that is there but does nothing, as after SIGSTOP: only pings tell."""
    path = tmp_path / "s"
    host = FakeHost()
    server = PoolServer(host, parse_endpoint(f"unix:{tmp_path}/real"))
    await server.start()
    frozen = asyncio.Event()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(tmp_path / "real"))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if not frozen.is_set():
                    sink.write(data)

        try:
            await asyncio.gather(copy(reader, back), copy(there, writer))
        except asyncio.CancelledError:
            pass  # the loop ends; the stream protocol would call it an error
        finally:
            writer.close()
            back.close()

    relay = await asyncio.start_unix_server(carry, path)
    watcher = Watcher(f"unix:{path}")
    host.responses.put_nowait(snapshot(1, "a"))
    try:
        await watcher.next()
        frozen.set()
        begin = time.monotonic()
        await watcher.until(2)
        assert time.monotonic() - begin < 25
    finally:
        await watcher.__aexit__()
        relay.close()
        await server.stop(0)


def _start(*command: str, **options: bool) -> stream_pb2.ExecRequest.Start:
    return stream_pb2.ExecRequest.Start(
        uid="uid-1", container="main", command=command, stdout=True, **options
    )


async def test_exec_carries_megabytes_both_ways(tmp_path: Path) -> None:
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    data = bytes(range(256)) * 4096 * 20  # 20 MiB
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        session = await client.exec(_start("cat", stdin=True))

        async def send() -> None:
            await session.write(data)
            await session.close_write()

        sending = asyncio.create_task(send())
        digest, size = hashlib.sha256(), 0
        async for fd, piece in session.receive():
            assert fd == 1 and len(piece) <= 64 * 1024
            digest.update(piece)
            size += len(piece)
        await sending
        assert await session.exit_code() == 0
        assert size == len(data) and digest.digest() == hashlib.sha256(data).digest()
        await session.close()
        await client.close()


async def test_a_command_that_ends_before_its_input_does(tmp_path: Path) -> None:
    """The exit code must arrive although the client is in the middle of a write."""
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        for _ in range(20):
            session = await client.exec(_start("sh", "-c", "echo done; exit 5", stdin=True))
            sending = asyncio.create_task(session.write(bytes(8 * 1024 * 1024)))
            assert [data async for _, data in session.receive()] == [b"done\n"]
            assert await session.exit_code() == 5
            await session.close()
            await asyncio.wait_for(sending, 60)
        await client.close()


async def test_a_reader_that_stops_stops_the_command(tmp_path: Path) -> None:
    """Backpressure end to end: a client that reads nothing takes no memory anywhere."""
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        session = await client.exec(_start("cat", stdin=True))
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                for _ in range(2000):
                    await session.write(bytes(64 * 1024))
                    sent += 64
        assert sent < 16 * 1024  # KiB, of 125 MiB
        await session.close()
        await client.close()


async def test_a_client_that_leaves_ends_its_command(tmp_path: Path) -> None:
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        session = await client.exec(_start("sleep", "1000"))
        sessions = host.sim._sessions
        assert sum(len(found) for found in sessions.values()) == 1
        await session.close()
        async with asyncio.timeout(60):
            while sessions:
                await asyncio.sleep(0.01)
        with pytest.raises(PoolFailure):
            await session.exit_code()
        await client.close()


async def test_a_log_that_is_silent_is_found_at_once(tmp_path: Path) -> None:
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        request = stream_pb2.StreamLogsRequest(uid="uid-1", container="main", follow=True)
        stream = await asyncio.wait_for(client.logs(request), 60)
        host.ended.set()
        assert [piece async for piece in stream] == []
        request.container = "other"
        with pytest.raises(PoolFailure) as caught:
            await client.logs(request)
        assert caught.value.kind == NOT_FOUND
        await client.close()


async def test_port_forward_and_half_close(tmp_path: Path) -> None:
    host = FakeHost()
    await host.run(["sleep", "infinity"])
    async with served(host, tmp_path / "s") as endpoint:
        client = PoolClient("az1", endpoint)
        connection = await client.port_forward("uid-1", 80)
        await connection.write(b"GET / HTTP/1.1\r\n\r\n")
        await connection.close_write()
        answer = b"".join([data async for data in connection.receive()])
        assert answer.startswith(b"HTTP/1.1 200")
        await connection.close()
        with pytest.raises(PoolFailure, match="refused"):
            await client.port_forward("uid-1", 81)
        await client.close()


def _packed(message: errors_pb2.PoolError) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


@pytest.mark.parametrize(
    "detail",
    [
        b"\xff\xff no message",
        b"",
        status_pb2.Status(details=[_packed(errors_pb2.PoolError(message="x"))]).SerializeToString(),
    ],
)
def test_a_failure_without_a_readable_detail_counts_by_its_code(detail: bytes) -> None:
    trailer = grpc.aio.Metadata(("grpc-status-details-bin", detail))
    for code, kind in (
        (grpc.StatusCode.INTERNAL, RETRYABLE),
        (grpc.StatusCode.PERMISSION_DENIED, REFUSED),
        (grpc.StatusCode.NOT_FOUND, NOT_FOUND),
    ):
        error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailer, "the text")
        failure = from_rpc_error(error)
        assert (failure.kind, failure.message) == (kind, "the text")
