"""A runtime in memory that does what a test says, when it says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from vknode.pool.runtimes.base import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    ExecStreams,
    Failure,
    FieldProblem,
    HealthChanged,
    Image,
    LogOptions,
    ObservedContainer,
    ObservedSandbox,
    ObservedState,
    ProbeOutcome,
    ProbeResult,
    RunningSandbox,
    RuntimeAway,
    RuntimeEvent,
    RuntimeInfo,
    StartedContainer,
)
from vknode.pool.v1 import cell_pb2, spec_pb2, stats_pb2, stream_pb2


class FakeRuntime:
    """Implements `base.Runtime`. A call waits while its name is in `blocked`, and fails
    with what `failures` holds for it. `world` outlives a `FakeRuntime`, as containers
    outlive a pool."""

    best_width = 2

    def __init__(self, world: dict[str, dict[str, Any]] | None = None) -> None:
        self.world = world if world is not None else {}
        self.calls: list[tuple[str, str]] = []
        self.active = 0
        self.most_active = 0
        self.blocked: dict[str, asyncio.Event] = {}
        self.failures: dict[str, list[Failure]] = {}
        self.away = False
        self.closed = False
        self.queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        self.serial = 0
        self.outcomes: list[ProbeOutcome] = []  # of probes; then they succeed

    def block(self, call: str) -> asyncio.Event:
        self.blocked[call] = asyncio.Event()
        return self.blocked[call]

    async def _call(self, name: str, what: str) -> None:
        self.calls.append((name, what))
        if self.away:
            raise RuntimeAway("the fake is away")
        starting = name in ("run_sandbox", "start_container")
        if starting:
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            if name in self.blocked:
                await self.blocked[name].wait()
            else:
                await asyncio.sleep(0)
        finally:
            if starting:
                self.active -= 1
        if self.away:
            raise RuntimeAway("the fake is away")
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    def count(self, name: str) -> int:
        return sum(call == name for call, _ in self.calls)

    # -- Runtime ----------------------------------------------------------------

    async def connect(self) -> RuntimeInfo:
        if self.away:
            raise RuntimeAway("the fake is away")
        node = cell_pb2.NodeInfo(operating_system="linux", architecture="amd64")
        return RuntimeInfo("fake", "1.0", ("", "gvisor"), node)

    async def close(self) -> None:
        self.closed = True

    def problems(self, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        if spec.host_pid:
            return [FieldProblem("host_pid", "the fake has no host")]
        return []

    async def inventory(self) -> list[ObservedSandbox]:
        self.calls.append(("inventory", ""))
        if self.away:
            raise RuntimeAway("the fake is away")
        if self.failures.get("inventory"):
            raise self.failures["inventory"].pop(0)
        return [
            ObservedSandbox(
                uid,
                box["sandbox"].id,
                box["sandbox"].attempt,
                box["ready"],
                box["sandbox"].ips,
                box["sandbox"].created_at,
                tuple(box["containers"].values()),
            )
            for uid, box in self.world.items()
        ]

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        while True:
            if self.failures.get("events"):
                raise self.failures["events"].pop(0)
            yield await self.queue.get()

    async def ensure_image(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        quick = policy == spec_pb2.IMAGE_PULL_POLICY_NEVER
        await self._call("look" if quick else "pull", reference)
        return Image(reference, f"{reference}@sha256:1", uid=1000)

    async def prepare(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container | None,
        attempt: int,
        ips: Sequence[str] = (),
    ) -> None:
        what = f"{spec.uid}/{container.name}" if container is not None else spec.uid
        if f"prepare {what}" in self.blocked or self.failures.get(f"prepare {what}"):
            await self._call(f"prepare {what}", what)

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        await self._call("run_sandbox", spec.uid)
        self.serial += 1
        sandbox = RunningSandbox(
            spec.uid, f"s-{spec.uid}-{attempt}", attempt, ("10.1.0.1",), time.time_ns()
        )
        box = self.world.setdefault(spec.uid, {"containers": {}})
        box.update(sandbox=sandbox, ready=True)
        return sandbox

    async def start_container(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        sandbox: RunningSandbox,
        image: Image,
        attempt: int,
    ) -> StartedContainer:
        await self._call("start_container", f"{spec.uid}/{container.name}/{attempt}")
        self.serial += 1
        ref = ContainerRef(spec.uid, container.name, attempt, f"c-{spec.uid}-{self.serial}")
        started = time.time_ns()
        self.world[spec.uid]["containers"][ref.id] = ObservedContainer(
            ref, ObservedState.RUNNING, image, started
        )
        return StartedContainer(ref, started)

    def end(self, ref: ContainerRef, code: int, *, tell: bool = True) -> None:
        old = self.world[ref.uid]["containers"][ref.id]
        if old.state is ObservedState.EXITED:
            return
        exit_ = ContainerExit(
            code, "Completed" if code == 0 else "Error", old.started_at, time.time_ns()
        )
        self.world[ref.uid]["containers"][ref.id] = ObservedContainer(
            ref, ObservedState.EXITED, old.image, old.started_at, exit_
        )
        if tell:
            self.queue.put_nowait(ContainerExited(ref, exit_))

    async def stop_container(self, ref: ContainerRef, grace_seconds: float) -> None:
        await self._call("stop_container", f"{ref.name}:{grace_seconds:.0f}")
        self.end(ref, 143 if grace_seconds else 137)

    async def remove_container(self, ref: ContainerRef, *, keep_log: bool) -> None:
        await self._call("remove_container", ref.name)
        self.world[ref.uid]["containers"].pop(ref.id, None)

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        await self._call("update_sandbox", new.uid)

    async def resize_container(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, ref: ContainerRef
    ) -> None:
        await self._call("resize_container", container.name)

    async def resize_sandbox(self, spec: spec_pb2.SandboxSpec) -> None:
        await self._call("resize_sandbox", spec.uid)

    async def probe(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float,
    ) -> ProbeOutcome:
        await self._call("probe", ref.name)
        return self.outcomes.pop(0) if self.outcomes else ProbeOutcome(ProbeResult.SUCCESS)

    async def hook(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float | None,
    ) -> None:
        await self._call("hook", ref.name)

    async def stop_sandbox(self, uid: str) -> None:
        await self._call("stop_sandbox", uid)
        self.world[uid]["ready"] = False

    async def remove_sandbox(self, uid: str) -> None:
        await self._call("remove_sandbox", uid)
        self.world.pop(uid, None)

    def go_away(self) -> None:
        self.away = True
        self.queue.put_nowait(HealthChanged(False, "RuntimeUnavailable", "no answer"))

    def come_back(self) -> None:
        self.away = False
        self.queue.put_nowait(HealthChanged(True))

    def logs(
        self, ref: ContainerRef, options: LogOptions, ended: asyncio.Event
    ) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def exec(self, ref: ContainerRef, start: stream_pb2.ExecRequest.Start) -> ExecStreams:
        raise NotImplementedError

    async def exec_sync(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, bytes]:
        raise NotImplementedError

    async def attach(self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start) -> ExecStreams:
        raise NotImplementedError

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams:
        raise NotImplementedError

    async def stats(self, uids: Sequence[str], cell: str = "") -> list[stats_pb2.SandboxStats]:
        return []
