"""What a check is, and what it can lean on while it runs.

A check is an async function that raises `CheckFailed` (by `expect` and the like) with
what it saw. It makes sandboxes only through its `Bench`, which removes them afterwards
whatever happened.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from vknode.pool.check.observer import Observer
from vknode.pool.client import PoolClient
from vknode.pool.errors import PoolFailure
from vknode.pool.v1 import (
    cell_pb2,
    errors_pb2,
    pool_pb2_grpc,
    spec_pb2,
    status_pb2,
    stream_pb2,
)

OWNER = "vknode-pool-check"
FOREVER = ["sh", "-c", "trap 'exit 0' TERM; echo ready; while true; do sleep 0.2; done"]


class CheckFailed(Exception):
    """The pool did not do what the contract says; the text tells what was seen."""


class CheckSkipped(Exception):
    """The check does not apply to this pool; the text tells why."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def expect_equal(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise CheckFailed(f"{what}: expected {_short(wanted)}, saw {_short(seen)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


async def expect_failure(
    call: Awaitable[Any], *kinds: errors_pb2.PoolError.Kind.ValueType, field: str = ""
) -> PoolFailure:
    """The call must fail with one of these kinds (and about this field)."""
    wanted = " or ".join(errors_pb2.PoolError.Kind.Name(kind) for kind in kinds)
    try:
        await call
    except PoolFailure as failure:
        name = errors_pb2.PoolError.Kind.Name(failure.kind)
        expect(failure.kind in kinds, f"expected {wanted}, got {name}: {failure}")
        expect(
            not field or failure.field == field,
            f"{name} should name the field {field!r}, it names {failure.field!r}",
        )
        expect(failure.message, f"{name} has no message")
        return failure
    raise CheckFailed(f"the call succeeded; expected {wanted}")


@dataclass(frozen=True, slots=True)
class Settings:
    image: str = "busybox:latest"
    cell: str = ""  # empty: the first healthy one
    runtime_handler: str = ""
    timeout: float = 60.0  # seconds for anything that starts or ends


@dataclass(slots=True)
class Bench:
    """One check's place to work."""

    name: str
    client: PoolClient
    channel: grpc.aio.Channel
    observer: Observer
    cells: dict[str, cell_pb2.Cell]
    settings: Settings
    uids: list[str] = field(default_factory=list)

    @property
    def stub(self) -> Any:
        """The bare calls, for requests that the client would not send."""
        return pool_pb2_grpc.PoolStub(self.channel)

    @property
    def cell(self) -> str:
        if self.settings.cell:
            return self.settings.cell
        for name, cell in sorted(self.cells.items()):
            if cell.health == cell_pb2.HEALTH_HEALTHY and not cell.draining:
                return name
        raise CheckFailed("no cell is healthy")

    def spec(
        self,
        command: list[str] | None = None,
        *,
        policy: spec_pb2.RestartPolicy.ValueType = spec_pb2.RESTART_POLICY_ALWAYS,
        grace: int = 5,
    ) -> spec_pb2.SandboxSpec:
        """A sandbox with one container "main"; will be removed after the check."""
        uid = str(uuid.uuid4())
        self.uids.append(uid)
        spec = spec_pb2.SandboxSpec(
            uid=uid,
            namespace="pool-check",
            name=f"{self.name.replace('_', '-')}-{uid[:8]}",
            cell=self.cell,
            tenant="default",
            runtime_handler=self.settings.runtime_handler,
            generation=1,
            restart_policy=policy,
            termination_grace_period_seconds=grace,
            network=spec_pb2.Network(hostname="pool-check"),
        )
        self.container(spec, "main", FOREVER if command is None else command)
        return spec

    def container(
        self, spec: spec_pb2.SandboxSpec, name: str, command: list[str], *, init: bool = False
    ) -> spec_pb2.Container:
        group = spec.init_containers if init else spec.containers
        return group.add(
            name=name,
            image=self.settings.image,
            image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
            command=command,
        )

    async def create(self, spec: spec_pb2.SandboxSpec) -> status_pb2.Sandbox:
        sandbox, created = await self.client.create(spec, OWNER)
        expect(created, "`created` is false for a new UID")
        return sandbox

    async def wait(
        self,
        spec: spec_pb2.SandboxSpec,
        condition: Callable[[status_pb2.Sandbox], object],
        what: str,
        timeout: float | None = None,
    ) -> status_pb2.Sandbox:
        """The first state, seen by the watch, that fulfils the condition."""
        limit = self.settings.timeout if timeout is None else timeout
        try:
            return await self.observer.wait(spec.uid, condition, limit)
        except TimeoutError:
            last = self.observer.latest.get(spec.uid)
            seen = "nothing" if last is None else describe(last)
            raise CheckFailed(f"not {what} within {limit:g} s; last seen: {seen}") from None

    async def running(self, spec: spec_pb2.SandboxSpec) -> status_pb2.Sandbox:
        """Create it and wait until all containers run and are ready."""
        await self.create(spec)
        return await self.wait(
            spec,
            lambda sandbox: (
                sandbox.state == status_pb2.SANDBOX_STATE_RUNNING
                and all(container.ready for container in sandbox.containers)
            ),
            "running",
        )

    async def finished(self, spec: spec_pb2.SandboxSpec) -> status_pb2.Sandbox:
        """Create it and wait until it succeeded or failed."""
        await self.create(spec)
        return await self.wait(
            spec,
            lambda sandbox: (
                sandbox.state
                in (status_pb2.SANDBOX_STATE_SUCCEEDED, status_pb2.SANDBOX_STATE_FAILED)
            ),
            "finished",
        )

    async def gone(self, spec: spec_pb2.SandboxSpec, timeout: float) -> None:
        """Wait for its `gone` entry."""
        try:
            await self.observer.wait_gone(spec.uid, timeout)
        except TimeoutError:
            raise CheckFailed(f"no `gone` entry within {timeout:g} s") from None

    async def logs(
        self, spec: spec_pb2.SandboxSpec, container: str = "main", **options: Any
    ) -> bytes:
        """A whole log by StreamLogs."""
        request = stream_pb2.StreamLogsRequest(uid=spec.uid, container=container, **options)
        stream = await self.client.logs(request)
        try:
            async with asyncio.timeout(self.settings.timeout):
                return b"".join([piece async for piece in stream])
        except TimeoutError:
            raise CheckFailed(f"the log did not end within {self.settings.timeout:g} s") from None
        finally:
            await stream.close()

    async def says(self, spec: spec_pb2.SandboxSpec, text: str) -> None:
        """Waits until container "main" has printed this."""
        request = stream_pb2.StreamLogsRequest(uid=spec.uid, container="main", follow=True)
        stream = await self.client.logs(request)
        seen = b""
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for piece in stream:
                    seen += piece
                    if text.encode() in seen:
                        return
        except TimeoutError:
            pass
        finally:
            await stream.close()
        raise CheckFailed(f"its log does not show {text!r}")

    async def exec(
        self,
        spec: spec_pb2.SandboxSpec,
        command: list[str],
        *,
        stdin: bytes | None = None,
        tty: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Exit code, stdout, stderr."""
        session = await self.client.exec(
            stream_pb2.ExecRequest.Start(
                uid=spec.uid,
                container="main",
                command=command,
                tty=tty,
                stdin=stdin is not None,
                stdout=True,
                stderr=not tty,
            )
        )
        output = {1: bytearray(), 2: bytearray()}

        async def send() -> None:
            await session.write(stdin or b"")
            await session.close_write()

        sending = asyncio.create_task(send()) if stdin is not None else None
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for fd, data in session.receive():
                    expect(len(data) <= 64 * 1024, f"a piece of {len(data)} bytes (64 KiB at most)")
                    output[fd] += data
                return await session.exit_code(), bytes(output[1]), bytes(output[2])
        except TimeoutError:
            raise CheckFailed(f"exec did not end within {self.settings.timeout:g} s") from None
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            await session.close()

    async def clean_up(self) -> list[str]:
        """Delete everything at once; the UIDs of what would not go."""
        left = []
        for uid in self.uids:
            try:
                found = (await self.client.delete(uid, 0, "pool-check")).found
                if found and uid not in self.observer.gone:
                    await self.observer.wait_gone(uid, self.settings.timeout)
            except (PoolFailure, TimeoutError):
                left.append(uid)
        return left


def describe(sandbox: status_pb2.Sandbox) -> str:
    """A sandbox in one line, for messages."""
    parts = [status_pb2.SandboxState.Name(sandbox.state).removeprefix("SANDBOX_STATE_")]
    if sandbox.reason:
        parts.append(sandbox.reason)
    for container in (*sandbox.init_containers, *sandbox.containers):
        kind = container.state.WhichOneof("state") or "no state"
        reason = getattr(getattr(container.state, kind, None), "reason", "")
        message = getattr(getattr(container.state, kind, None), "message", "")
        parts.append(f"{container.name}: {kind} {reason} {message[:120]}".strip())
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    proves: str
    run: Callable[[Bench], Awaitable[None]]


CHECKS: list[Check] = []


def check(
    proves: str,
) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
    """Register a check under its function's name."""

    def register(run: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
        CHECKS.append(Check(getattr(run, "__name__", "check"), proves, run))
        return run

    return register
