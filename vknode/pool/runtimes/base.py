"""The primitive calls that a pool makes on what really runs containers.

The lifecycle engine decides *what* should happen, a `Runtime` only *does* single
things: one image, one sandbox, one container instance. It keeps no Pod semantics:
no restarts, no order, no back-off. Everything is idempotent enough to be replayed
after a crash of the pool, whose knowledge is rebuilt from `inventory()`.

Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    EventsLost,
    Failure,
    FieldProblem,
    HealthChanged,
    Image,
    ObservedContainer,
    ObservedSandbox,
    ObservedState,
    ProbeOutcome,
    ProbeResult,
    RunningSandbox,
    RuntimeAway,
    RuntimeEvent,
    SandboxDied,
    SandboxOverLimit,
    StartedContainer,
)
from vknode.pool.v1 import cell_pb2, spec_pb2, stats_pb2, stream_pb2

__all__ = [
    "ContainerExit",
    "ContainerExited",
    "ContainerRef",
    "EventsLost",
    "ExecStreams",
    "Failure",
    "FieldProblem",
    "HealthChanged",
    "Image",
    "LogOptions",
    "ObservedContainer",
    "ObservedSandbox",
    "ObservedState",
    "ProbeOutcome",
    "ProbeResult",
    "RunningSandbox",
    "Runtime",
    "RuntimeAway",
    "RuntimeEvent",
    "RuntimeInfo",
    "SandboxDied",
    "SandboxOverLimit",
    "StartedContainer",
]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """As StreamLogsRequest; times in ns, None for absent."""

    follow: bool = False
    tail_lines: int | None = None
    since: int | None = None
    limit_bytes: int | None = None
    timestamps: bool = False
    stream: stream_pb2.LogStream.ValueType = stream_pb2.LOG_STREAM_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What the runtime is; feeds the cells' NodeInfo."""

    scheme: str  # prefix of container IDs: "containerd", "cri-o", "sim"
    version: str
    handlers: tuple[str, ...] = ()
    node: cell_pb2.NodeInfo = field(default_factory=cell_pb2.NodeInfo)


class ExecStreams(Protocol):
    """A running exec or attach session, or a forwarded connection's two ends.

    `receive` yields output until the end and then returns; `write` waits while the
    other side does not read (backpressure); both are safe to cancel.
    """

    def receive(self) -> AsyncIterator[tuple[int, bytes]]:
        """Pieces of at most 64 KiB as (1, stdout) or (2, stderr)."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close_write(self) -> None: ...

    async def resize(self, width: int, height: int) -> None: ...

    async def exit_code(self) -> int:
        """After `receive` has ended. Raises Failure where there is none to tell."""
        ...

    async def close(self) -> None:
        """End the session, whatever its state; idempotent."""
        ...


class Runtime(Protocol):
    """One runtime, for all cells of one pool."""

    # How many sandboxes it starts at once with the best throughput.
    best_width: int

    async def connect(self) -> RuntimeInfo:
        """Ready to be used. Raises RuntimeAway, or Failure where it can never work."""
        ...

    async def close(self) -> None:
        """Let go of the connection. Sandboxes go on running."""
        ...

    def problems(self, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        """Every field of the spec that cannot be honoured here. No I/O."""
        ...

    async def inventory(self) -> list[ObservedSandbox]:
        """All sandboxes of this pool, those of an earlier process included."""
        ...

    def events(self) -> AsyncIterator[RuntimeEvent]:
        """Never ends by itself; reconnects. Call it once."""
        ...

    async def ensure_image(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        """Raises Failure("ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName").

        With NEVER it touches no network; the engine asks so first, whatever the Pod's
        policy (unless ALWAYS), to tell a quick look from a pull."""
        ...

    async def prepare(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container | None,
        attempt: int,
        ips: Sequence[str] = (),
    ) -> None:
        """What a start of the sandbox (None) or of one instance may have to wait for others
        for: registries, files of the host. Called before a start has its turn, which must
        not be spent on waiting; may be repeated, cancelled and left out, then the start
        does it. `ips` are those of an instance's sandbox. Raises Failure as the start."""
        ...

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        """Volumes, network and the sandbox itself. Raises Failure; then nothing of this
        attempt is left. With `attempt` above 0 an earlier attempt's sandbox is stopped
        and removed first; the volumes, logs and ended instances of the UID stay."""
        ...

    async def start_container(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        sandbox: RunningSandbox,
        image: Image,
        attempt: int,
    ) -> StartedContainer:
        """Create and start one instance. Raises Failure; then no instance runs."""
        ...

    async def stop_container(self, ref: ContainerRef, grace_seconds: float) -> None:
        """Stop signal, then SIGKILL after the grace (0: at once). Returns when it has
        ended; the exit itself comes as an event. Unknown or ended: no error. May be
        called again with less while it runs: the sooner kill holds."""
        ...

    async def remove_container(self, ref: ContainerRef, *, keep_log: bool) -> None: ...

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        """Bring changed volume content, labels and annotations to a running sandbox."""
        ...

    async def resize_container(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, ref: ContainerRef
    ) -> None:
        """Put `container.resources` in force for a running instance. Raises Failure; then
        the ones before may hold, in whole or in part, and the same call may be repeated.
        Unknown or ended: no error."""
        ...

    async def resize_sandbox(self, spec: spec_pb2.SandboxSpec) -> None:
        """Put `spec.resources`, the limits of all containers together, in force; as
        `resize_container`."""
        ...

    async def probe(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float,
    ) -> ProbeOutcome:
        """Ask once. `ips` are the sandbox's; an action without a host goes to the first.
        What cannot be asked is an outcome, too (ERROR); raises RuntimeAway only."""
        ...

    async def hook(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float | None,
    ) -> None:
        """Run a hook (exec or http_get; the engine itself sleeps) to its end. None: as long
        as it takes. Raises Failure with a kubelet's text in `message`; safe to cancel."""
        ...

    async def stop_sandbox(self, uid: str) -> None:
        """For a sandbox that has ended for good: let go of its processes, network and
        IPs. Ended instances, their logs and the volumes stay (and stay in the
        inventory, with `ready` False) until `remove_sandbox`. Unknown or stopped: no
        error. Raises Failure."""
        ...

    async def remove_sandbox(self, uid: str) -> None:
        """Everything of a sandbox: processes, network, containers, volumes, logs.
        Returns when nothing is left. Unknown: no error. Raises RuntimeAway."""
        ...

    def logs(
        self, ref: ContainerRef, options: LogOptions, ended: asyncio.Event
    ) -> AsyncIterator[bytes]:
        """The log of one instance, ready for a client, in pieces of at most 64 KiB.
        With `follow` it goes on until `ended` is set and all is read. Raises Failure
        where there is no log any more."""
        ...

    async def exec(self, ref: ContainerRef, start: stream_pb2.ExecRequest.Start) -> ExecStreams: ...

    async def exec_sync(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, bytes]:
        """Exit code and at most 10 KiB of mixed output. Raises Failure("DeadlineExceeded")."""
        ...

    async def attach(
        self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start
    ) -> ExecStreams: ...

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams: ...

    async def stats(self, uids: Sequence[str], cell: str = "") -> list[stats_pb2.SandboxStats]:
        """Usage of these sandboxes (all where empty) in this cell (any where empty); without
        their probes."""
        ...
