"""What an API server speaks to a node decides what we must understand: it differs by release.

Run on the newest release by `make test`, on an older one by `make test-previous`; the rest of
what may differ is in the tests of kubectl, workloads and topology, which both run."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest

from tests.conftest import ControlPlaneHandle
from vknode.devcluster.programs.catalog import kubernetes_version

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("declared", [[], ["ExtendWebSocketsToKubelet"]])
async def test_what_the_api_server_speaks_to_a_node(
    control_plane: ControlPlaneHandle, namespace: str, declared: list[str]
) -> None:
    asked: list[tuple[str, str]] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        asked.append((head[0].split(" ")[0], fields.get("upgrade", "")))
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 12\r\n\r\nonly looking")
        await writer.drain()
        writer.transport.abort()

    plane = control_plane.control_plane
    serving = plane.authority.issue("looking", "looking", ips=["127.0.0.1"])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(serving.cert, serving.key)
    async with await asyncio.start_server(record, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        node = f"node-{namespace}"
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "declaredFeatures": declared,
        }
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
        for item in (
            {"kind": "Node", "metadata": {"name": node}, "status": status},
            {"kind": "Pod", "metadata": {"name": "web", "namespace": namespace}, "spec": spec},
        ):
            await kubectl(control_plane, "create", "-f", "-", stdin={"apiVersion": "v1", **item})
        running = ("patch", "pod", "web", "-n", namespace, "--subresource=status", "-p")
        await kubectl(control_plane, *running, '{"status":{"phase":"Running"}}')
        await kubectl(control_plane, "exec", "-n", namespace, "web", "--", "true", fails=True)
        await kubectl(control_plane, "delete", "node", node)
    minor = int(kubernetes_version().split(".")[1])
    passes_on = minor >= 36 and bool(declared)
    assert asked[0] == (("GET", "websocket") if passes_on else ("POST", "spdy/3.1"))


async def kubectl(
    plane: ControlPlaneHandle, *arguments: str, stdin: object = None, fails: bool = False
) -> None:
    child = await asyncio.create_subprocess_exec(
        *plane.kubectl.command(*arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        _, error = await child.communicate(json.dumps(stdin).encode())
    assert fails == (child.returncode != 0), error.decode()
