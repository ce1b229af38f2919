"""The primitive calls that a pool makes on what really runs containers.

The lifecycle engine decides *what* should happen, a `Runtime` only *does* single
things: one image, one sandbox, one container instance. It keeps no Pod semantics:
no restarts, no order, no back-off. Everything is idempotent enough to be replayed
after a crash of the pool, whose knowledge is rebuilt from `inventory()`.

Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vknode.pool.v1 import cell_pb2, spec_pb2, stats_pb2, stream_pb2


class Failure(Exception):
    """A runtime call failed.

    `reason` is the word that a kubelet would show ("ErrImagePull",
    "ErrImageNeverPull", "InvalidImageName", "FailedCreatePodSandBox",
    "CreateContainerError", "CreateContainerConfigError", "RunContainerError",
    "StartError"); `message` is for the user. `retryable` is False where the same
    call can never succeed.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retryable = retryable


class RuntimeAway(Failure):
    """The runtime cannot be reached; nothing is known about what it runs."""

    def __init__(self, message: str) -> None:
        super().__init__("RuntimeUnavailable", message)


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A field of a SandboxSpec that this runtime cannot honour."""

    path: str  # in proto names: "containers[0].security.se_linux"
    message: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is present."""

    reference: str  # as asked for, with default registry and tag filled in
    id: str  # digest reference, ContainerStatus.image_id
    # Numeric user that the image asks for; None where it names one or none.
    uid: int | None = None
    username: str = ""
    pulled: bool = False  # True where this call fetched it
    size: int = 0  # bytes, 0 where unknown


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """A sandbox with its network."""

    uid: str
    id: str
    attempt: int
    ips: tuple[str, ...]
    created_at: int


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """One instance of a container; `attempt` counts from 0 and is the restart count."""

    uid: str
    name: str
    attempt: int
    id: str


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How an instance ended."""

    exit_code: int
    reason: str  # "Completed", "Error", "OOMKilled", "ContainerCannotRun", …
    started_at: int
    finished_at: int
    signal: int = 0
    message: str = ""  # termination message, at most 4096 bytes of UTF-8


@dataclass(frozen=True, slots=True)
class StartedContainer:
    ref: ContainerRef
    started_at: int
    user: tuple[int, int, tuple[int, ...]] | None = None  # uid, gid, groups


class ObservedState(enum.Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class ObservedContainer:
    """A container instance found in the runtime."""

    ref: ContainerRef
    state: ObservedState
    image: Image
    started_at: int = 0
    exit: ContainerExit | None = None


@dataclass(frozen=True, slots=True)
class ObservedSandbox:
    """A sandbox found in the runtime, with everything of it that still exists."""

    uid: str
    id: str
    attempt: int
    ready: bool  # False: its network is gone, nothing can be started in it
    ips: tuple[str, ...]
    created_at: int
    containers: tuple[ObservedContainer, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerExited:
    """Event: an instance ended. Sent at least once for each."""

    ref: ContainerRef
    exit: ContainerExit


@dataclass(frozen=True, slots=True)
class SandboxDied:
    """Event: the sandbox itself (its network holder) ended unasked."""

    uid: str
    id: str


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Event: something may have been missed; take a new inventory."""


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """Event: the runtime went away or came back. Coming back implies EventsLost."""

    healthy: bool
    reason: str = ""  # CamelCase
    message: str = ""


RuntimeEvent = ContainerExited | SandboxDied | EventsLost | HealthChanged


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
        """Raises Failure("ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName")."""
        ...

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        """Volumes, network and the sandbox itself. Raises Failure."""
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
        ended; the exit itself comes as an event. Unknown or ended: no error."""
        ...

    async def remove_container(self, ref: ContainerRef, *, keep_log: bool) -> None: ...

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        """Bring changed volume content and resources to a running sandbox."""
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
        """For probes and hooks: exit code and at most 10 KiB of mixed output."""
        ...

    async def attach(
        self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start
    ) -> ExecStreams: ...

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams: ...

    async def stats(self, uids: Sequence[str]) -> list[stats_pb2.SandboxStats]:
        """Usage of these sandboxes (all where empty)."""
        ...
