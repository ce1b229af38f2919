"""A client that shares no code with kubectl: that of the Python library, over WebSocket with
protocol v4 (kubectl speaks v5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kubernetes_asyncio import config
from kubernetes_asyncio.client import Configuration, CoreV1Api
from kubernetes_asyncio.stream import WsApiClient
from kubernetes_asyncio.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL

from tests.support.fixtures import Running
from tests.support.kube import Kube, simple_pod

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

PATIENCE = 60.0


@asynccontextmanager
async def library(kubeconfig: Path) -> AsyncIterator[CoreV1Api]:
    configuration = Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with WsApiClient(configuration) as client:
        yield CoreV1Api(client)


async def everything(socket: aiohttp.ClientWebSocketResponse) -> dict[int, bytes]:
    """By channel, until the other side ends it."""
    found: dict[int, bytes] = {}
    async with asyncio.timeout(PATIENCE):
        async for message in socket:
            found[message.data[0]] = found.get(message.data[0], b"") + message.data[1:]
    return found


def test_a_command_with_input_output_and_exit_code(cri: Running, kube: Kube) -> None:
    kube.apply(simple_pod("shell"))
    kube.wait_phase("shell", "Running")

    command: Any = ["sh", "-c", "read word; echo got $word; echo and this >&2; exit 7"]

    async def play() -> dict[int, bytes]:
        async with library(cri.cluster.kubeconfig) as api:
            session: Any = await api.connect_get_namespaced_pod_exec(
                "shell",
                kube.namespace,
                command=command,
                stdin=True,
                stdout=True,
                stderr=True,
                _preload_content=False,
            )
            async with session as socket:
                await socket.send_bytes(b"\0hello\n")
                return await everything(socket)

    found = asyncio.run(play())
    assert found[STDOUT_CHANNEL] == b"got hello\n"
    assert found[STDERR_CHANNEL] == b"and this\n"
    assert WsApiClient.parse_error_data(found[ERROR_CHANNEL]) == 7


def test_the_library_reads_all_output_by_itself(cri: Running, kube: Kube) -> None:
    kube.apply(simple_pod("shell"))
    kube.wait_phase("shell", "Running")

    async def play() -> str:
        async with library(cri.cluster.kubeconfig) as api:
            command: Any = ["seq", "20000"]  # the stubs know of single words only
            output: str = await api.connect_get_namespaced_pod_exec(
                "shell", kube.namespace, command=command, stdout=True, stderr=True
            )
            return output

    assert asyncio.run(play()).split() == [str(number) for number in range(1, 20_001)]


def test_a_running_container_is_attached_to(cri: Running, kube: Kube) -> None:
    container = {"stdin": True, "stdinOnce": True}
    kube.apply(simple_pod("cat", ["cat"], restart="Never", container=container))
    kube.wait_phase("cat", "Running")

    async def play() -> bytes:
        async with library(cri.cluster.kubeconfig) as api:
            session: Any = await api.connect_get_namespaced_pod_attach(
                "cat", kube.namespace, stdin=True, stdout=True, _preload_content=False
            )
            async with session as socket, asyncio.timeout(PATIENCE):
                await socket.send_bytes(b"\0hello\n")
                found = b""
                while b"hello\n" not in found:
                    message = await socket.receive_bytes()
                    found += message[1:] if message[0] == STDOUT_CHANNEL else b""
                return found

    assert asyncio.run(play()) == b"hello\n"
    kube.wait_phase("cat", "Succeeded")  # its input has ended with the client
