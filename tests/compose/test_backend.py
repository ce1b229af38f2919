"""Logs and exec of the kubelet API through a real pool process (simulated runtime)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.agent.pods import pod_json
from tests.pool_contract.poolprocess import pool_process
from vknode.agent.links import Link
from vknode.agent.pod_record import PodRecord
from vknode.agent.pod_store import PodObject, PodStore
from vknode.compose.backend import AgentBackend
from vknode.kubeletapi import BackendError, ExecRequest, Exit, LogOptions, PodView, Stderr, Stdout
from vknode.pool.client import PoolClient
from vknode.pool.v1 import spec_pb2, status_pb2

UID = "6f6f6f6f-0000-4000-8000-000000000001"


@dataclass
class Setting:
    backend: AgentBackend
    record: PodRecord

    @property
    def pod(self) -> PodView:
        pod = self.backend.lookup("default", "web")
        assert pod is not None
        return pod


@pytest.fixture
async def setting(short_path: Path) -> AsyncIterator[Setting]:
    """A Pod whose one container has written two lines and runs."""
    async with pool_process(short_path, "--runtime", "sim") as process:
        ready = await process.event("pool_ready")
        client = PoolClient("az1", ready["endpoint"])
        link = Link("az1", lambda up, down: client)
        store = PodStore()
        store.upsert(PodObject(msgspec.json.encode(pod_json(UID))))
        record = PodRecord(UID, "cell-1", link, "cell-1")
        spec = spec_pb2.SandboxSpec(
            uid=UID,
            namespace="default",
            name="web",
            cell="az1-a",
            tenant="default",
            restart_policy=spec_pb2.RESTART_POLICY_NEVER,
        )
        spec.containers.add(
            name="main",
            image="busybox",
            image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
            command=["sh", "-c", "echo one; echo two; sleep 3600"],
        )
        await client.create(spec, "test")
        running = asyncio.Event()

        async def follow() -> None:
            async for update in client.sandboxes():
                for sandbox in update.sandboxes:
                    record.observe(sandbox)
                    if sandbox.state == status_pb2.SANDBOX_STATE_RUNNING:
                        running.set()

        following = asyncio.create_task(follow())
        try:
            async with asyncio.timeout(60):
                await running.wait()
            yield Setting(AgentBackend(store, {UID: record}, {"az1": client}), record)
        finally:
            await client.close()
            await asyncio.wait([following], timeout=60)


async def read(setting: Setting, options: LogOptions) -> bytes:
    return b"".join([data async for data in setting.backend.open_logs(setting.pod, options)])


async def test_a_container_is_seen_as_the_pool_says(setting: Setting) -> None:
    (container,) = setting.pod.containers.values()
    assert (container.name, container.state, container.started) == ("main", "running", True)
    assert setting.backend.lookup("default", "other") is None


async def test_logs(setting: Setting) -> None:
    async with asyncio.timeout(60):
        while await read(setting, LogOptions("main")) != b"one\ntwo\n":
            await asyncio.sleep(0.02)
    assert await read(setting, LogOptions("main", tail_lines=1)) == b"two\n"
    stamped = await read(setting, LogOptions("main", timestamps=True, tail_lines=1))
    assert stamped.endswith(b"Z two\n")


async def test_a_followed_log_ends_with_its_reader(setting: Setting) -> None:
    logs = setting.backend.open_logs(setting.pod, LogOptions("main", follow=True))
    async with asyncio.timeout(60):
        text = b""
        while text != b"one\ntwo\n":
            text += await anext(logs)
        await logs.aclose()


async def test_an_unknown_container_is_said(setting: Setting) -> None:
    with pytest.raises(BackendError, match="nobody"):
        await read(setting, LogOptions("nobody"))


async def test_exec_carries_both_streams_and_the_exit_code(setting: Setting) -> None:
    request = ExecRequest(
        "main", ("sh", "-c", "cat; echo bad >&2; exit 7"), True, True, True, False
    )
    async with setting.backend.open_exec(setting.pod, request) as session:
        await session.write_stdin(b"hello")
        await session.close_stdin()
        out, err, code = b"", b"", None
        async for event in session:
            if isinstance(event, Stdout):
                out += event.data
            elif isinstance(event, Stderr):
                err += event.data
            elif isinstance(event, Exit):
                code = event.code
    assert (out, err, code) == (b"hello", b"bad\n", 7)


async def test_exec_into_a_pod_that_is_forgotten_is_refused(setting: Setting) -> None:
    pod = setting.pod
    setting.backend._records = {}
    request = ExecRequest("main", ("true",), False, True, True, False)
    with pytest.raises(BackendError, match="not found"):
        async with setting.backend.open_exec(pod, request):
            pass
