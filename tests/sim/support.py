"""A started simulation and specs for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vknode.pool.runtimes.base import (
    ContainerExited,
    ContainerRef,
    LogOptions,
    RunningSandbox,
    RuntimeEvent,
)
from vknode.pool.runtimes.sim.config import Latency, SimConfig
from vknode.pool.runtimes.sim.journal import Journal
from vknode.pool.runtimes.sim.runtime import SimRuntime
from vknode.pool.v1 import spec_pb2, stream_pb2

QUICK = {
    "sandbox": Latency(0.0),
    "image_pull": Latency(0.0),
    "container": Latency(0.0),
    "stop": Latency(0.01),
}


def make_spec(
    command: list[str] | None = None, uid: str = "uid-1", **annotations: str
) -> spec_pb2.SandboxSpec:
    """One container "main"; annotations are behaviour words with "_" for "-"."""
    spec = spec_pb2.SandboxSpec(
        uid=uid, namespace="default", name=f"pod-{uid}", cell="z-a", tenant="default"
    )
    spec.containers.add(name="main", image="busybox", command=command or [])
    for word, value in annotations.items():
        spec.annotations[f"sim.vknode.dev/{word.replace('_', '-')}"] = value
    return spec


@asynccontextmanager
async def simulation(
    config: SimConfig | None = None, journal: Journal | None = None
) -> AsyncIterator[SimRuntime]:
    runtime = SimRuntime(config or SimConfig(latency=QUICK), zone="z", journal=journal)
    await runtime.connect()
    try:
        yield runtime
    finally:
        await runtime.close()


async def start(
    runtime: SimRuntime, spec: spec_pb2.SandboxSpec, attempt: int = 0
) -> tuple[RunningSandbox, ContainerRef]:
    """The sandbox and its first container."""
    container = spec.containers[0]
    image = await runtime.ensure_image(
        container.image, spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT, []
    )
    sandbox = await runtime.run_sandbox(spec, 0)
    started = await runtime.start_container(spec, container, sandbox, image, attempt)
    return sandbox, started.ref


async def next_exit(runtime: SimRuntime, timeout: float = 30.0) -> ContainerExited:
    event = await next_event(runtime, timeout)
    assert isinstance(event, ContainerExited), event
    return event


async def next_event(runtime: SimRuntime, timeout: float = 30.0) -> RuntimeEvent:
    async with asyncio.timeout(timeout):
        async for event in runtime.events():
            return event
    raise AssertionError("the events ended")


async def read_logs(
    runtime: SimRuntime, ref: ContainerRef, ended: bool = True, **options: object
) -> bytes:
    over = asyncio.Event()
    if ended:
        over.set()
    found = LogOptions(**options)  # type: ignore[arg-type]  # named by each test
    return b"".join([piece async for piece in runtime.logs(ref, found, over)])


async def run_exec(
    runtime: SimRuntime,
    ref: ContainerRef,
    command: list[str],
    stdin: bytes | None = None,
    tty: bool = False,
) -> tuple[int, bytes, bytes]:
    session = await runtime.exec(
        ref, stream_pb2.ExecRequest.Start(command=command, stdin=stdin is not None, tty=tty)
    )
    output = {1: b"", 2: b""}

    async def send() -> None:
        for at in range(0, len(stdin or b""), 65536):
            await session.write((stdin or b"")[at : at + 65536])
        await session.close_write()

    sending = asyncio.create_task(send())
    async for fd, data in session.receive():
        output[fd] += data
    await sending
    code = await session.exit_code()
    await session.close()
    return code, output[1], output[2]
