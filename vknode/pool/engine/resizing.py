"""Bringing resources that were set aside into force, container by container.

| state of a change | what it means                                               | where         |
|-------------------|-------------------------------------------------------------|---------------|
| pending           | no room (Deferred), or never (Infeasible): the old ones hold | `pending`     |
| in progress       | set aside; some container still has others in force          | `resizing`    |
| done              | every running container has what is set aside                | neither       |

A container whose `resize_restarts` names a changed resource is restarted; in others it is
changed while they run. A failure is told and tried again after 10 s. What starts takes
the new ones by itself.

Source: pkg/kubelet/kuberuntime/kuberuntime_manager.go (computePodResizeAction).
"""

from __future__ import annotations

import dataclasses

from vknode.pool.engine import resources, steps, wording
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, Kill, Role, Stage
from vknode.pool.engine.facts import ResizeError, SandboxFacts
from vknode.pool.v1 import spec_pb2

RETRY = 10 * SECOND


def resize(facts: SandboxFacts) -> None:
    """The next calls, if a change is in progress; tells when it is done."""
    if not facts.resizing:
        return
    open_ = _resize_sandbox(facts)
    for record in (*facts.inits, *facts.mains):
        if record.stage in (Stage.STARTING, Stage.UNSURE):
            open_ = True
        elif record.stage is Stage.RUNNING:
            open_ = _resize_one(facts, record) or open_
    if not open_:
        facts.resizing = False
        facts.resize_error = None
        facts.persist(resizing=False)
        text = wording.resize("Pod resize completed", facts.spec, facts.resizing_generation)
        facts.event("ResizeCompleted", text)
        facts.touch()


def _resize_sandbox(facts: SandboxFacts) -> bool:
    """True while the limits of the whole sandbox are not as they should be."""
    if facts.resize_op:
        return True
    if facts.in_force is None and not facts.spec.HasField("resources"):
        facts.in_force = facts.spec.resources  # there is nothing to put in force
    if facts.in_force is not None and not resources.changed(facts.in_force, facts.spec.resources):
        return False
    if facts.resize_retry_at is not None:
        if facts.now < facts.resize_retry_at:
            facts.wake_by(facts.resize_retry_at)
            return True
        facts.resize_retry_at = None
    facts.resize_op = facts.new_op("resize")
    facts.resize_sent = facts.spec.resources
    facts.act(steps.ResizeSandbox(facts.resize_op, facts.spec))
    return True


def _resize_one(facts: SandboxFacts, record: ContainerRecord) -> bool:
    """True while this container is not as it should be."""
    assert record.ref is not None
    if record.resize_op or record.stop_deadline is not None:
        return True
    if record.in_force is not None:
        different = resources.changed(
            resources.effective(record.in_force, record.in_force_pod),
            resources.effective(record.spec.resources, facts.spec.resources),
        ).intersection(resources.RESIZABLE)
        if not different:
            return False
        if different.intersection(record.spec.resize_restarts) and record.role is not Role.INIT:
            message = f"Container {record.name} resize requires restart"
            facts.kill(record, Kill(message, facts.grace, restart=True, lenient_backoff=True))
            facts.wake_by(facts.now)
            return True
    if record.resize_retry_at is not None:
        if facts.now < record.resize_retry_at:
            facts.wake_by(record.resize_retry_at)
            return True
        record.resize_retry_at = None
    record.resize_op = facts.new_op("resize", record.name)
    record.resize_sent = record.spec.resources
    record.resize_sent_pod = facts.spec.resources
    facts.act(steps.ResizeContainer(record.resize_op, record.ref, record.spec))
    return True


def resized(facts: SandboxFacts, op: int, name: str) -> None:
    """The runtime has put what was sent into force; no `name`: for the whole sandbox."""
    one = facts.containers[name] if name else facts
    if one.resize_op == op:
        one.resize_op = 0
        one.in_force, one.resize_sent = one.resize_sent, None
        if isinstance(one, ContainerRecord):
            one.in_force_pod = one.resize_sent_pod
        facts.touch()


def resize_failed(facts: SandboxFacts, op: int, name: str, message: str) -> None:
    one = facts.containers[name] if name else facts
    if one.resize_op != op:
        return
    one.resize_op = 0
    one.resize_sent = None
    one.resize_retry_at = facts.now + RETRY
    generation = facts.resizing_generation
    if facts.resize_error != ResizeError(message, generation):
        facts.resize_error = ResizeError(message, generation)
        text = wording.resize("Pod resize error", facts.spec, generation, message)
        facts.event("ResizeError", text, warning=True)
    facts.touch()


def outcome(facts: SandboxFacts, wanted: spec_pb2.SandboxSpec, reason: str) -> steps.Persisted:
    """What must be known after `take`. It is kept together with the spec: one without the
    other would tell that what was only asked for is set aside, or in force."""
    allocated, resizing = "", facts.resizing
    if reason:
        kept = resources.only_resources(resources.with_resources(wanted, facts.spec))
        allocated = kept.SerializeToString(deterministic=True).hex()
    else:
        resizing = resizing or bool(resources.differ(facts.spec, wanted))
    return dataclasses.replace(facts.persisted, allocated=allocated, resizing=resizing)


def take(facts: SandboxFacts, wanted: spec_pb2.SandboxSpec, reason: str, message: str) -> None:
    """A newer spec, whose resources are set aside unless `reason` says why not."""
    after = outcome(facts, wanted, reason)
    facts.wanted = wanted
    if reason:
        facts.spec = resources.with_resources(wanted, facts.spec)
        if (facts.pending, facts.pending_generation) != ((reason, message), wanted.generation):
            text = wording.resize(f"Pod resize {reason}", wanted, wanted.generation, message)
            facts.event(f"Resize{reason}", text, warning=True)
        facts.pending = (reason, message)
        facts.pending_generation = wanted.generation
    else:
        more = resources.differ(facts.spec, wanted)
        facts.spec = wanted
        facts.pending = ("", "")
        if more:
            facts.resizing = True
            facts.resize_error = None
            facts.resizing_generation = wanted.generation
            text = wording.resize("Pod resize started", wanted, wanted.generation)
            facts.event("ResizeStarted", text)
    if after != facts.persisted:
        facts.persist(allocated=after.allocated, resizing=after.resizing)
