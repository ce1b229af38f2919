"""grpc probes against a real gRPC server; the texts are a kubelet 1.37.2's, recorded there."""

from __future__ import annotations

import pytest

from tests.probes.health_server import health_server
from tests.probes.servers import scripted
from vknode.pool.probes.network import Network
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

SERVING = ProbeOutcome(ProbeResult.SUCCESS, "service healthy")
_HANGS = 4  # seconds: until then the connection must have been made
_RPC = "error: health rpc probe failed: rpc error: code = "
_ANSWERS = {
    "": SERVING,
    "headers": SERVING,  # more of them than fit into one frame
    "hang": f"timeout: health rpc did not complete within {_HANGS}s",
    "internal": _RPC + 'Internal desc = a "ü" %\n<b>',
    "unknown": _RPC + "NotFound desc = unknown service",
    "UNKNOWN": 'service unhealthy (responded with "UNKNOWN")',
    "NOT_SERVING": 'service unhealthy (responded with "NOT_SERVING")',
    "SERVICE_UNKNOWN": 'service unhealthy (responded with "SERVICE_UNKNOWN")',
}


async def ask(port: int, service: str = "", timeout_seconds: float = 60) -> ProbeOutcome:
    network = Network()
    action = spec_pb2.Handler(grpc=spec_pb2.Handler.Grpc(port=port, service=service))
    try:
        return await network.probe(action, ["127.0.0.1"], timeout_seconds)
    finally:
        network.close()


@pytest.mark.parametrize("service", _ANSWERS)
async def test_a_service_says_how_it_is(service: str) -> None:
    expected = _ANSWERS[service]
    if isinstance(expected, str):
        expected = ProbeOutcome(ProbeResult.FAILURE, expected)
    async with health_server() as (port, agents):
        assert await ask(port, service, _HANGS if service == "hang" else 60) == expected
    assert agents and agents[0].startswith("kube-probe/1.37")


async def test_a_server_without_the_health_service_is_a_failure() -> None:
    async with health_server(implemented=False) as (port, _):
        assert await ask(port) == ProbeOutcome(
            ProbeResult.FAILURE,
            "error: this server does not implement the grpc health protocol "
            "(grpc.health.v1.Health): Method not found!",
        )


async def test_a_server_that_comes_up_within_the_timeout_is_found() -> None:
    async with scripted([["close"]]) as gone:
        port = gone.port
    asked = ask(port, timeout_seconds=0.3)
    assert (await asked).output == (
        f'timeout: failed to connect service "127.0.0.1:{port}" within 300ms: '
        "context deadline exceeded"
    )


async def test_a_connection_that_breaks_in_the_call_is_a_failure() -> None:
    settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    async with scripted([["some", ["send", settings], "close"]]) as server:
        found = await ask(server.port)
    assert found == ProbeOutcome(
        ProbeResult.FAILURE, _RPC + "Unavailable desc = error reading from server: EOF"
    )


async def test_a_name_that_no_frame_can_hold_is_a_failure() -> None:
    async with health_server() as (port, _):
        found = await ask(port, "x" * 20_000)
    assert found.result is ProbeResult.FAILURE
    assert found.output.startswith(_RPC + "Internal desc = ")
