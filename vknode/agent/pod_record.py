"""What the agent holds in memory of each Pod of its nodes, and where such a Pod runs."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vknode.agent.authority import Given
from vknode.agent.links import Link
from vknode.agent.pod_store import PodObject
from vknode.agent.sync_core import Actual, Memory
from vknode.kube.backoff import Backoff
from vknode.pool.v1 import status_pb2
from vknode.translate.facts import NodeFacts

ENDED = frozenset((status_pb2.SANDBOX_STATE_SUCCEEDED, status_pb2.SANDBOX_STATE_FAILED))


class Placement(NamedTuple):
    """A registered node of ours, and what is behind it."""

    node: str
    node_uid: str
    link: Link
    facts: NodeFacts

    @property
    def host_ips(self) -> Sequence[str]:
        return self.facts.host_ips


class OverrideKind(enum.Enum):
    WAITING = "waiting"
    REJECTED = "rejected"
    LOST = "lost"


class Override(NamedTuple):
    """A status that is ours to give, because the pool has no sandbox to tell of."""

    kind: OverrideKind
    reason: str = ""
    message: str = ""


@dataclass(slots=True)
class PodRecord:
    """One Pod. `sandbox` is the newest state heard, the last one after it is gone. `cell` is where
    the Pod belongs."""

    uid: str
    node: str
    link: Link
    cell: str
    memory: Memory = field(default_factory=Memory)
    sandbox: status_pb2.Sandbox | None = None
    override: Override | None = None
    # The node has taken it (`admitter.py`).
    admitted: bool = False
    # The API server certainly has no such Pod; `last` is its newest known state, None for a
    # sandbox whose Pod we never saw.
    api_gone: bool = False
    last: PodObject | None = None
    # We saw it before its deletion began.
    seen_alive: bool = False
    # The deletionGracePeriodSeconds that the last DeleteSandbox was made from.
    grace_asked: int | None = None
    # Creations and updates wait until then (loop time): back-off.
    retry_at: float = 0.0
    backoff: Backoff | None = None
    # Containers held back in the pool for want of something they name, with the reason.
    config_errors: tuple[tuple[str, str], ...] = ()
    # How often its content was called stale, and how often when it was last built anew.
    stale: int = 0
    fresh: int = 0
    # Debug containers that were refused: they cannot be taken out of the Pod again, and would
    # have every later update refused with them.
    left_out: frozenset[str] = frozenset()
    # Those that the pool has taken from this process.
    debug_taken: frozenset[str] = frozenset()
    # What was told last of an update that the pool refused, and of changes that it left out.
    refusal: str = ""
    kept_told: str = ""
    # Hash of the spec that the pool has; None: an earlier agent sent it.
    spec_sent: int | None = None
    # `retry_at` is for want of something that may come any moment.
    waits_for_news: bool = False
    # Restarts of its containers when their variables were last looked up for the next one.
    restarts_prepared: int = 0
    # Some container waits for an image that could not be pulled.
    lacks_image: bool = False
    # The object's deletion has been accepted; only finalizers can keep it.
    finished: bool = False
    # resourceVersion of our own last write: its echo is no news.
    written: str = ""
    # Hash and length of its body, the time in it that was "now", and when it was taken
    # (time.monotonic).
    written_body: int = 0
    written_length: int = 0
    written_now: str = ""
    written_at: float = 0.0

    @property
    def given(self) -> Given:
        """Who may speak of its sandbox, and where it is."""
        return Given(self.link.name, self.cell)

    def actual(self) -> Actual | None:
        sandbox = self.sandbox
        if sandbox is None:
            return None
        return Actual(
            deleting=sandbox.deleting,
            ended=sandbox.state in ENDED,
            observed_generation=sandbox.observed_generation,
        )

    def observe(self, sandbox: status_pb2.Sandbox) -> None:
        """Takes a state of the sandbox from the pool."""
        self.sandbox = sandbox
        memory = self.memory
        memory.gone = False
        memory.ended = sandbox.state in ENDED
        if not memory.ran:
            memory.ran = has_run(sandbox)
        if self.override is not None and not memory.given_up:
            self.override = None
        if memory.fingerprint_sent is None:
            # Adopted: what an earlier agent could not resolve must still be resolved.
            self.config_errors = _config_errors(sandbox)

    def observe_gone(self, last: status_pb2.Sandbox | None) -> None:
        if last is not None:
            self.observe(last)
        self.memory.gone = True


def has_run(sandbox: status_pb2.Sandbox) -> bool:
    """Some container of it was there: starting it again would repeat work."""
    return sandbox.state >= status_pb2.SANDBOX_STATE_RUNNING or any(
        status.container_id
        for statuses in (sandbox.init_containers, sandbox.containers)
        for status in statuses
    )


def _config_errors(sandbox: status_pb2.Sandbox) -> tuple[tuple[str, str], ...]:
    return tuple(
        (status.name, status.state.waiting.message)
        for statuses in (sandbox.init_containers, sandbox.containers)
        for status in statuses
        if status.state.waiting.reason == "CreateContainerConfigError"
    )


# A pull secret may put these right: also the last, for it decides who may use a private image
# that is there already.
_NO_IMAGE = frozenset(("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"))
# A container waits for these as a matter of course; every other reason is news for people.
_PLAIN_WAITING = frozenset(("", "ContainerCreating", "PodInitializing"))


def is_plain_progress(sandbox: status_pb2.Sandbox) -> bool:
    """The next state will follow soon, and one PATCH can tell both: nothing has gone wrong and
    nothing runs yet, or all that runs is being ended."""
    if sandbox.deleting:
        return sandbox.state not in ENDED
    if sandbox.state >= status_pb2.SANDBOX_STATE_RUNNING:
        return False
    return all(
        status.restart_count == 0
        and (
            status.state.WhichOneof("state") != "waiting"
            or status.state.waiting.reason in _PLAIN_WAITING
        )
        for statuses in (sandbox.init_containers, sandbox.containers)
        for status in statuses
    )


def lacks_image(sandbox: status_pb2.Sandbox) -> bool:
    """Some image cannot be had, and that is tried again."""
    return any(
        status.state.waiting.reason in _NO_IMAGE
        for statuses in (
            sandbox.init_containers,
            sandbox.containers,
            sandbox.ephemeral_containers,
        )
        for status in statuses
    )


def restarts_awaited(sandbox: status_pb2.Sandbox) -> int:
    """Restarts so far, where some container waits for its next one; else 0."""
    statuses = (*sandbox.init_containers, *sandbox.containers)
    if not any(
        status.state.waiting.reason == "CrashLoopBackOff"
        or (
            status.state.waiting.reason == "CreateContainerConfigError"
            and status.HasField("last_termination")
        )
        for status in statuses
    ):
        return 0
    return 1 + sum(status.restart_count for status in statuses)
