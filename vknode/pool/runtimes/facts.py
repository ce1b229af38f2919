"""What a runtime reports, as plain data; `base.py` has the calls.

Apart from them because the lifecycle engine reads these facts and may not know an
event loop. Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

_RESOURCES = re.compile(r"((init_)?containers\[\d+\]\.)?resources\b")


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

    @property
    def of_resources(self) -> bool:
        """Of what a resize changes."""
        return bool(_RESOURCES.match(self.path))


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
class SandboxOverLimit:
    """Event: the sandbox uses more of something than it may, and must be ended for it
    (a volume above its size limit, say). Shown as an eviction; `message` says of what."""

    uid: str
    message: str


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Event: something may have been missed; take a new inventory."""


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """Event: the runtime went away or came back. Coming back implies EventsLost."""

    healthy: bool
    reason: str = ""  # CamelCase
    message: str = ""


RuntimeEvent = ContainerExited | SandboxDied | SandboxOverLimit | EventsLost | HealthChanged


class ProbeResult(enum.Enum):
    SUCCESS = "success"
    # Counts as a success; the output is told as an event (a redirect to another host).
    WARNING = "warning"
    FAILURE = "failure"
    # The question could not be asked at all; nothing is known, no threshold counts it.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """One answer to a probe. `output` is for the user, at most 10 KiB, a kubelet's words."""

    result: ProbeResult
    output: str = ""
