"""Many probes at once, hooks over HTTP, and what our own lack of something means."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.probes.servers import scripted, server_tls
from tests.support.stepped import stepped
from vknode.pool.probes.network import Network
from vknode.pool.probes.turnstile import Turnstile
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

_OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    yield made
    made.close()


def get(port: int, scheme: str = "HTTP") -> spec_pb2.Handler:
    action = spec_pb2.Handler.HttpGet(path="/", port=port, scheme=scheme)
    return spec_pb2.Handler(http_get=action)


def tcp(port: int, host: str = "") -> spec_pb2.Handler:
    return spec_pb2.Handler(tcp_socket=spec_pb2.Handler.TcpSocket(port=port, host=host))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_thousand_probes_leave_no_socket_behind(network: Network) -> None:
    async with scripted([["read", ["send", _OK]]]) as server:
        before = descriptors()
        asked = [network.probe(get(server.port), ["127.0.0.1"], 120) for _ in range(1000)]
        found = await asyncio.gather(*asked)
        assert {outcome.result for outcome in found} == {ProbeResult.SUCCESS}
        while server.open:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # closed sockets leave in the next turn
        assert descriptors() <= before + 1


async def test_those_that_hang_do_not_hold_up_the_others(network: Network) -> None:
    async with scripted([["hang"]]) as deaf, scripted([["read", ["send", _OK]]]) as quick:
        hanging = [
            asyncio.create_task(network.probe(get(deaf.port), ["127.0.0.1"], 120))
            for _ in range(200)
        ]
        async with asyncio.timeout(90):  # they have 120 s
            found = await network.probe(get(quick.port), ["127.0.0.1"], 60)
        assert found == ProbeOutcome(ProbeResult.SUCCESS, "hi")
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_a_cancelled_probe_closes_its_connection(network: Network) -> None:
    async with scripted([["read", "hang"]]) as server:
        probing = asyncio.create_task(network.probe(get(server.port), ["127.0.0.1"], 60))
        while not server.requests:
            await asyncio.sleep(0)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        async with asyncio.timeout(30):
            while server.open:
                await asyncio.sleep(0)


async def test_our_own_lack_of_descriptors_is_not_the_containers_fault(network: Network) -> None:
    async with scripted([["read", ["send", _OK]]]) as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            found = [
                await network.probe(action, ["127.0.0.1"], 30)
                for action in (get(server.port), tcp(server.port))
            ]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [outcome.result for outcome in found] == [ProbeResult.ERROR, ProbeResult.ERROR]
    assert "too many open files" in found[0].output


async def test_a_host_of_its_own_is_asked_instead_of_the_pod(network: Network) -> None:
    async with scripted([["hang"]]) as server:
        nobody = ["192.0.2.1"]
        found = await network.probe(tcp(server.port, "127.0.0.1"), nobody, 30)
        assert found.result is ProbeResult.SUCCESS


async def test_a_sandbox_without_an_ip_cannot_be_asked(network: Network) -> None:
    found = await network.probe(tcp(80), [], 5)
    assert found == ProbeOutcome(ProbeResult.ERROR, "the sandbox has no IP")


async def test_a_hook_falls_back_to_http_without_its_secret(
    network: Network, tmp_path: Path
) -> None:
    plain = ["send", "HTTP/1.0 400 Bad Request\r\n\r\n"]
    scripts = [["some", plain, "close"], ["read", ["send", _OK]]]
    action = get(0, "HTTPS")
    action.http_get.headers.add(name="Authorization", value="Bearer secret")
    action.http_get.headers.add(name="X-Other", value="kept")
    async with scripted(scripts, server_tls(tmp_path)) as server:
        action.http_get.port = server.port
        await network.hook(action.http_get, ["127.0.0.1"], "main", "pod")
        (request,) = server.requests
    assert "X-Other: kept" in request and "secret" not in request
    assert "User-Agent: kube-lifecycle/1.37" in request


@stepped
async def test_a_turnstile_lets_so_many_begin_and_no_more() -> None:
    turnstile = Turnstile(2, hold=0.05)
    inside = most = 0

    async def quick() -> None:
        nonlocal inside, most
        async with turnstile.entry():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(quick() for _ in range(20)))
    assert most == 2
    # Those that stay longer than the hold give their places away.
    stay = asyncio.Event()

    async def slow() -> None:
        async with turnstile.entry():
            await stay.wait()

    slow_ones = [asyncio.create_task(slow()) for _ in range(5)]
    async with asyncio.timeout(30):
        await quick()
    stay.set()
    await asyncio.gather(*slow_ones)
    async with asyncio.timeout(30):
        await asyncio.gather(quick(), quick())
    assert most == 2
