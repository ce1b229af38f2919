"""What the kubelet's own probers say and send, told the same servers.

kubelet-1.37.2.json was recorded with pkg/probe/http, tcp and grpc of that version in a
small Go program, and with the HTTP client of its lifecycle hooks. Each case has what was
asked, the script of the server (see servers.py), what the prober made of it and the
requests that the server read. `{port}` stands for the server's port, `{local}` for the
client's, `{10KiB}` for so many letters.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.probes.servers import deaf, scripted, server_tls
from vknode.pool.probes.network import Network
from vknode.pool.runtimes.facts import Failure, ProbeResult
from vknode.pool.v1 import spec_pb2

_CASES = json.loads((Path(__file__).parent / "kubelet-1.37.2.json").read_text())
_CLOSED = 1  # tcpmux, which nobody runs
_LONG, _INTO_THE_BODY = 60.0, 4.0  # seconds


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    return server_tls(tmp_path)


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    made = Network()
    yield made
    made.close()


def handler(ask: dict[str, Any], port: int) -> spec_pb2.Handler:
    host = ask.get("host", "")
    match ask["kind"]:
        case "tcp":
            return spec_pb2.Handler(tcp_socket=spec_pb2.Handler.TcpSocket(port=port, host=host))
        case "grpc":
            return spec_pb2.Handler(grpc=spec_pb2.Handler.Grpc(port=port))
    headers = [spec_pb2.Handler.HttpHeader(name=n, value=v) for n, v in ask.get("headers", ())]
    return spec_pb2.Handler(
        http_get=spec_pb2.Handler.HttpGet(
            path=ask["path"],
            port=port,
            host=host,
            scheme=ask.get("scheme", "HTTP"),
            headers=headers,
        )
    )


def patience(case: dict[str, Any]) -> float:
    """Seconds that a probe has. Those that the kubelet had, and no fewer than a busy machine needs,
    where the answer is not about time; else as long as its text says, or as gets it so far."""
    told = json.dumps(case["kubelet"])
    if "deadline exceeded" not in told and "timeout" not in told:
        return _LONG
    seconds: float = case["ask"]["timeout"]
    return max(seconds, _INTO_THE_BODY) if "reading body" in told else seconds


async def outcome(network: Network, case: dict[str, Any], port: int) -> dict[str, str]:
    ask = case["ask"]
    action = handler(ask, port)
    if ask["kind"] == "hook":
        try:
            await network.hook(action.http_get, ["127.0.0.1"], "main", "web_default(uid-1)")
        except Failure as failure:
            wrapped = 'hook (/h) for Container "main" in Pod "web_default(uid-1)" failed - error: '
            return {"error": failure.message.removeprefix(f"HTTP lifecycle {wrapped}")}
        return {}
    found = await network.probe(action, ["127.0.0.1"], patience(case))
    if found.result is ProbeResult.ERROR:
        return {"result": "failure", "error": found.output}
    shown = {"result": found.result.value, "output": found.output}
    return {key: value for key, value in shown.items() if value}


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
async def test_as_the_kubelet(case: dict[str, Any], network: Network, tls: ssl.SSLContext) -> None:
    ask, server = case["ask"], case["server"]
    requests: list[str] = []
    with contextlib.ExitStack() as stack:
        if isinstance(server, str):
            port = _CLOSED if server == "none" else stack.enter_context(deaf())
            found = await outcome(network, case, port)
        else:
            async with scripted(server, tls) as running:
                port = running.port
                found = await outcome(network, case, port)
                requests = [r.replace(f":{port}", ":{port}") for r in running.requests]
    for key, text in found.items():
        text = text.replace(f":{port}", ":{port}").replace("x" * 10240, "{10KiB}")
        found[key] = re.sub(r"127\.0\.0\.1:\d+->", "127.0.0.1:{local}->", text)
    assert found == case["kubelet"]
    if ask["kind"] == "http":
        assert requests == case.get("requests", [])
