"""A runtime under test: short ways to run Pods on it and to wait for its events."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vknode.pool.runtimes.base import LogOptions, RuntimeInfo
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.runtime import CriRuntime
from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    RunningSandbox,
    RuntimeEvent,
)
from vknode.pool.v1 import spec_pb2

BUSYBOX = "busybox:1.36"
PATIENCE = 120.0  # seconds, on a machine that is busy otherwise
E = TypeVar("E")


def pod(*script: str, name: str = "web", **fields: Any) -> spec_pb2.SandboxSpec:
    """A Pod with one container `main` that runs a shell script (none: it sleeps)."""
    spec = spec_pb2.SandboxSpec(
        uid=str(uuid.uuid4()),
        namespace="default",
        name=name,
        cell="z-a",
        tenant="default",
        labels={"app": name},
        network=spec_pb2.Network(hostname=name),
        restart_policy=spec_pb2.RESTART_POLICY_NEVER,
        termination_grace_period_seconds=1,
        **fields,
    )
    add(spec, "; ".join(script) or "sleep 1000")
    return spec


def add(
    spec: spec_pb2.SandboxSpec, script: str, name: str = "main", **fields: Any
) -> spec_pb2.Container:
    """Another container that runs a shell script; SIGTERM ends it."""
    container = spec.containers.add(
        name=name,
        image=BUSYBOX,
        image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
        command=["sh", "-c", script],
        termination_message_path="/dev/termination-log",
    )
    container.MergeFrom(spec_pb2.Container(**fields))
    return container


def with_volume(spec: spec_pb2.SandboxSpec, name: str, path: str) -> spec_pb2.Volume:
    """A new volume, mounted into every container there is."""
    for container in spec.containers:
        container.mounts.add(volume=name, path=path)
    return spec.volumes.add(name=name)


class Harness:
    def __init__(self, socket: Path, state: Path, pool: str, **options: Any) -> None:
        self.options = CriOptions(
            endpoint=str(socket),
            state_dir=state,
            pool=pool,
            status_interval=0.5,
            storage_interval=0.2,
            **options,
        )
        self.runtime = CriRuntime(self.options)
        self.info = RuntimeInfo("", "")
        self.events: list[RuntimeEvent] = []
        self._changed = asyncio.Condition()
        self._collector: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self.info = await self.runtime.connect()
        self._collector = asyncio.create_task(self._collect())

    async def disconnect(self) -> None:
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
        await self.runtime.close()

    async def restart(self) -> None:
        """What a restart of the pool process does: everything in memory is gone."""
        await self.disconnect()
        self.runtime = CriRuntime(self.options)
        self.events.clear()
        await self.connect()

    async def clear(self) -> None:
        for sandbox in await self.runtime.inventory():
            await self.runtime.remove_sandbox(sandbox.uid)

    async def _collect(self) -> None:
        events = self.runtime.events()
        try:
            async for event in events:
                async with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # an async generator

    async def event(self, kind: type[E], where: Callable[[E], bool] = lambda _: True) -> E:
        """The first event of this kind that fits, waiting for it."""

        def find() -> E | None:
            fits = (e for e in self.events if isinstance(e, kind) and where(e))
            return next(fits, None)

        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: find() is not None)
        found = find()
        assert found is not None
        return found

    async def exit_of(self, ref: ContainerRef) -> ContainerExit:
        return (await self.event(ContainerExited, lambda e: e.ref == ref)).exit

    async def start(self, spec: spec_pb2.SandboxSpec) -> tuple[RunningSandbox, ContainerRef]:
        """Runs the Pod's sandbox and its first container."""
        sandbox = await self.runtime.run_sandbox(spec, 0)
        return sandbox, await self.start_in(spec, sandbox, spec.containers[0])

    async def start_in(
        self,
        spec: spec_pb2.SandboxSpec,
        sandbox: RunningSandbox,
        container: spec_pb2.Container,
        attempt: int = 0,
    ) -> ContainerRef:
        image = await self.runtime.ensure_image(container.image, container.image_pull_policy, ())
        started = await self.runtime.start_container(spec, container, sandbox, image, attempt)
        return started.ref

    async def run(self, spec: spec_pb2.SandboxSpec) -> tuple[ContainerExit, str]:
        """Runs the Pod's first container to its end; returns that and its log."""
        _, ref = await self.start(spec)
        exit_ = await self.exit_of(ref)
        return exit_, await self.log(ref)

    async def log(self, ref: ContainerRef, options: LogOptions | None = None) -> str:
        ended = asyncio.Event()
        ended.set()
        pieces = [p async for p in self.runtime.logs(ref, options or LogOptions(), ended)]
        return b"".join(pieces).decode()

    async def says(self, ref: ContainerRef, text: str) -> None:
        """Waits until the instance has printed this."""
        seen = b""
        stream = self.runtime.logs(ref, LogOptions(follow=True), asyncio.Event())
        try:
            async with asyncio.timeout(PATIENCE):
                async for piece in stream:
                    seen += piece
                    if text.encode() in seen:
                        return
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator
