"""What goes into a sandbox machine (events) and what comes out of it (actions).

An action with an `op` wants exactly one answer: the event that carries the same
`op`. Runtime facts (`ContainerExited`, `SandboxDied`) go in as they are. Times are
nanoseconds since the Unix epoch, graces seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vknode.pool.runtimes.facts import (
    ContainerExited,
    ContainerRef,
    Image,
    ObservedSandbox,
    ProbeOutcome,
    RunningSandbox,
    SandboxDied,
    SandboxOverLimit,
    StartedContainer,
)
from vknode.pool.v1 import spec_pb2, status_pb2


@dataclass(frozen=True, slots=True)
class Persisted:
    """What must be known of a sandbox after a restart of the pool beside its spec."""

    owner: str
    created_at: int
    # A deletion was asked for: the latest moment of the kill.
    deletion_deadline: int | None = None
    deletion_reason: str = ""
    # Some container was started once. Only kept where it matters: with restart policy
    # NEVER (may another sandbox be made?) and once all has ended.
    ran: bool = False
    # It was decided that it fails (an eviction, say): the latest moment of the kill.
    failing_deadline: int | None = None
    failing_reason: str = ""
    failing_message: str = ""
    # The sandbox has ended for good.
    ended: status_pb2.SandboxState.ValueType = status_pb2.SANDBOX_STATE_UNSPECIFIED
    ended_reason: str = ""
    ended_message: str = ""
    # Running instances with probes, by the runtime's ID: started, ready.
    probed: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    # What is set aside where that is not what the spec asks for: a serialised SandboxSpec
    # with nothing but resources in it, in hexadecimal digits. Empty: the spec's own.
    allocated: str = ""
    # A resize may not be in force everywhere.
    resizing: bool = False
    # All containers are being restarted.
    restarting_all: bool = False
    # When all containers last began anew; what ran before counts for nothing. 0: never.
    began_anew_at: int = 0
    # Containers whose instance was to end and run again, whatever its policy, and has not
    # been started again yet.
    killing: tuple[str, ...] = ()


# -- events ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `wake_at` is due. The first event of a new machine, too."""


@dataclass(frozen=True, slots=True)
class ImageReady:
    op: int
    image: Image
    began: int = 0  # when the runtime itself was asked, after any waiting; 0: unknown


@dataclass(frozen=True, slots=True)
class SandboxReady:
    op: int
    sandbox: RunningSandbox


@dataclass(frozen=True, slots=True)
class Started:
    op: int
    started: StartedContainer


@dataclass(frozen=True, slots=True)
class Done:
    """A stop, removal, update, hook or resize has succeeded."""

    op: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An action failed. `away`: nobody knows whether it was carried out."""

    op: int
    reason: str
    message: str
    retryable: bool = True
    away: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The action was given up before the runtime was asked."""

    op: int


@dataclass(frozen=True, slots=True)
class RuntimeLost:
    """The runtime cannot be reached: hold still until `Observed`."""


@dataclass(frozen=True, slots=True)
class Observed:
    """This sandbox in an inventory that was asked for at `as_of`."""

    sandbox: ObservedSandbox | None
    as_of: int


@dataclass(frozen=True, slots=True)
class Delete:
    """End it. `grace_seconds` None: the spec's own."""

    grace_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """A newer spec, as `newer.newer` has made it.

    `pending` is why its resources cannot be set aside (a reason of the contract's
    Resize, and a sentence); empty reason: they are."""

    spec: spec_pb2.SandboxSpec
    pending_reason: str = ""
    pending_message: str = ""


@dataclass(frozen=True, slots=True)
class Reconsidered:
    """The room for the wanted resources was looked for again; as in `Update`."""

    pending_reason: str = ""
    pending_message: str = ""


@dataclass(frozen=True, slots=True)
class Drained:
    """Its cell is emptied: it ends as with a deletion, within its own grace, but stays
    known as failed until somebody deletes it."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to a probe."""

    op: int
    outcome: ProbeOutcome


Event = (
    Tick
    | ImageReady
    | SandboxReady
    | Started
    | Done
    | Failed
    | Cancelled
    | RuntimeLost
    | Observed
    | Delete
    | Update
    | Reconsidered
    | Drained
    | Probed
    | ContainerExited
    | SandboxDied
    | SandboxOverLimit
)

# -- actions --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnsureImage:
    """With policy NEVER a quick look, otherwise perhaps a pull."""

    op: int
    container: str
    reference: str
    policy: spec_pb2.ImagePullPolicy.ValueType


@dataclass(frozen=True, slots=True)
class RunSandbox:
    op: int
    attempt: int


@dataclass(frozen=True, slots=True)
class StartContainer:
    op: int
    container: spec_pb2.Container
    sandbox: RunningSandbox
    image: Image
    attempt: int


@dataclass(frozen=True, slots=True)
class StopContainer:
    op: int
    ref: ContainerRef
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    op: int
    ref: ContainerRef
    keep_log: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask once; the answer is a `Probed` (or Failed where the runtime is away)."""

    op: int
    ref: ContainerRef
    ips: tuple[str, ...]
    handler: spec_pb2.Handler
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run a hook; Done or Failed. `timeout_seconds` None: as long as it takes."""

    op: int
    ref: ContainerRef
    ips: tuple[str, ...]
    handler: spec_pb2.Handler
    timeout_seconds: float | None


@dataclass(frozen=True, slots=True)
class ResizeContainer:
    op: int
    ref: ContainerRef
    container: spec_pb2.Container


@dataclass(frozen=True, slots=True)
class ResizeSandbox:
    """Put the limits of the whole sandbox in force."""

    op: int
    spec: spec_pb2.SandboxSpec


@dataclass(frozen=True, slots=True)
class UpdateSandbox:
    op: int
    old: spec_pb2.SandboxSpec
    new: spec_pb2.SandboxSpec


@dataclass(frozen=True, slots=True)
class StopSandbox:
    op: int


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    op: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up this op if the runtime was not asked yet (an image, probe or hook: even
    then)."""

    op: int


@dataclass(frozen=True, slots=True)
class Observe:
    """Send an `Observed` from an inventory taken from now on."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep this, so that `adopt` finds it."""

    state: Persisted


@dataclass(frozen=True, slots=True)
class Emit:
    event: status_pb2.SandboxEvent


Action = (
    EnsureImage
    | RunSandbox
    | StartContainer
    | StopContainer
    | RemoveContainer
    | Probe
    | RunHook
    | ResizeContainer
    | ResizeSandbox
    | UpdateSandbox
    | StopSandbox
    | RemoveSandbox
    | Cancel
    | Observe
    | Persist
    | Emit
)
