"""What an event tells: results of actions and facts from the runtime.

Nothing is decided here; `plan` does that afterwards, from the facts alone. An
event that does not fit (a stale op, an exit already known) changes nothing, so
that events may come late, twice or in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vknode.pool.engine import images, resizing, steps, updates, wording
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import (
    ContainerRecord,
    HookRun,
    HookStage,
    Kill,
    Role,
    Stage,
)
from vknode.pool.engine.facts import OpTarget, SandboxFacts, SandboxStage, failing
from vknode.pool.engine.inventory import observe
from vknode.pool.engine.probes import Probes
from vknode.pool.engine.probing import probed
from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerExited,
    SandboxDied,
    SandboxOverLimit,
)
from vknode.pool.v1 import spec_pb2, status_pb2

# The failure of a start that left an ended instance, as containerd does.
_START_REASONS = frozenset({"RunContainerError", "StartError", "ContainerCannotRun"})
_START_EXIT_CODE = 128


def absorb(facts: SandboxFacts, event: steps.Event) -> None:
    handler = _HANDLERS.get(type(event))
    if handler is not None:
        handler(facts, event)


def _sandbox_ready(facts: SandboxFacts, event: steps.SandboxReady) -> None:
    target = facts.ops.pop(event.op, None)
    if target is None or facts.sandbox_op != event.op:
        return
    facts.cancelled.discard(event.op)
    facts.sandbox_op = 0
    facts.sandbox = event.sandbox
    facts.sandbox_known_at = facts.now
    facts.sandbox_retry.reset()
    facts.sandbox_retry_at = None
    facts.pod_ips = event.sandbox.ips
    facts.trouble = ("", "")
    facts.stage = SandboxStage.READY
    facts.sandbox_ready_at = facts.sandbox_ready_at or facts.now
    facts.move_to(status_pb2.SANDBOX_STATE_STARTING)
    facts.touch()
    if event.sandbox.id in facts.early_deaths:
        sandbox_died(facts, event.sandbox.id)
    facts.early_deaths.clear()


def sandbox_died(facts: SandboxFacts, sandbox_id: str) -> None:
    if facts.stage is SandboxStage.CREATING:
        facts.early_deaths.add(sandbox_id)
    elif (
        facts.stage is SandboxStage.READY
        and facts.sandbox is not None
        and facts.sandbox.id == sandbox_id
    ):
        facts.stage = SandboxStage.DEAD
        facts.dead_deadline = facts.now + facts.grace
        facts.touch()


def _started(facts: SandboxFacts, event: steps.Started) -> None:
    record = _start_record(facts, event.op)
    if record is None:
        return
    started = event.started
    first = facts.first_started_at == 0
    record.op = 0
    record.stage = Stage.RUNNING
    record.ref, record.started_at = started.ref, started.started_at or facts.now
    record.user = started.user
    record.known_at = facts.now
    record.image = record.starting
    record.ran_in_this_sandbox = True
    record.clear_waiting()
    record.retry.reset()
    facts.killed(record)
    record.probes = Probes.of(record.spec)
    facts.event("Created", "Container created", container=record.name)
    facts.event("Started", "Container started", container=record.name)
    if first:
        facts.first_started_at = facts.now
    if not facts.persisted.ran and facts.spec.restart_policy == spec_pb2.RESTART_POLICY_NEVER:
        facts.persist(ran=True)
    if record.starting_reference != record.spec.image and record.role in (Role.MAIN, Role.SIDECAR):
        # The image was changed while it was being started.
        facts.kill(record, updates.changed(facts, record))
    if record.spec.HasField("post_start"):
        record.post_start.stage = HookStage.WANTED
    else:
        has_come_up(facts, record)
    if record.ended_before is not None and record.ended_before.ref is not None:
        facts.garbage.append(record.ended_before.ref)
        record.ended_before = None
    facts.touch()
    early, record.early_exit = record.early_exit, None
    if early is not None and early.ref.id == started.ref.id:
        facts.exited(record, early.exit)


def has_come_up(facts: SandboxFacts, record: ContainerRecord) -> None:
    """It runs, and its post-start hook, if there is one, is done."""
    record.probes.begin(record.started_at, facts.now)
    main_has_started(facts, record)
    facts.touch()


def main_has_started(facts: SandboxFacts, record: ContainerRecord) -> None:
    if record.role is not Role.MAIN:
        return
    facts.move_to(status_pb2.SANDBOX_STATE_RUNNING)
    if not facts.all_started_at and all(
        c.ran_in_this_sandbox or c.ended is not None for c in facts.mains
    ):
        facts.all_started_at = facts.now
        facts.touch()


def _start_failed(facts: SandboxFacts, record: ContainerRecord, event: steps.Failed) -> None:
    record.op = 0
    record.early_exit = None
    if event.away:
        record.stage = Stage.UNSURE
        facts.hold_still()
        return
    name = record.name
    if event.reason in _START_REASONS:
        facts.event("Created", "Container created", container=name)
        record.image = record.starting
        record.ref, record.started_at = None, 0
        record.ran_in_this_sandbox = True
        facts.exited(
            record,
            ContainerExit(_START_EXIT_CODE, "StartError", 0, facts.now, message=event.message),
        )
        if record.restart_wanted(facts.spec) and not facts.deleting:
            record.wait("RunContainerError", event.message)
        main_has_started(facts, record)
    else:
        record.stage = Stage.IDLE
        record.wait(event.reason, event.message)
        if event.retryable:
            record.retry_at = record.retry.failed(facts.now)
        else:
            record.held = True
    facts.event("Failed", f"Error: {event.message}", warning=True, container=name)
    facts.touch()


def _failed(facts: SandboxFacts, event: steps.Failed) -> None:
    target = facts.ops.get(event.op)
    if target is None:
        return
    if target.kind == "image":
        images.failed(facts, event)
    elif target.kind == "start":
        record = _start_record(facts, event.op)
        if record is not None:
            _start_failed(facts, record, event)
    else:
        del facts.ops[event.op]
        facts.cancelled.discard(event.op)
        _other_failed(facts, event, target)


def _other_failed(facts: SandboxFacts, event: steps.Failed, target: OpTarget) -> None:
    now = facts.now
    if event.away:
        facts.hold_still()
    kind = target.kind
    if kind == "stop":
        record = facts.containers[target.container]
        if record.stop_op == event.op:
            record.stop_op = 0
            record.stop_retry_at = now + SECOND
    elif kind == "clear":
        record = facts.containers[target.container]
        if record.op == event.op:
            record.op = 0
            if event.away:
                record.stage = Stage.UNSURE
            else:  # it stays behind; the next number is free
                record.stage = Stage.IDLE
                record.attempt += 1
    elif kind == "garbage":
        facts.garbage.append(facts.collecting.pop(event.op))
        facts.collect_at = now + 10 * SECOND
    elif kind in ("post_start", "pre_stop"):
        _hook_failed(facts, event, target)
    elif kind == "resize":
        resizing.resize_failed(facts, event.op, target.container, event.message)
    elif kind == "probe":
        record = facts.containers[target.container]
        state = record.probes.find(event.op)
        if state is not None:  # nobody knows; it is asked again when its time comes
            state.op = 0
    elif kind == "update":
        facts.update_op = 0
        facts.update_sent = None
        facts.update_retry_at = now + 10 * SECOND
        if not event.away:
            facts.event(
                "FailedMount", f"Updating the sandbox failed: {event.message}", warning=True
            )
    elif facts.sandbox_op == event.op:
        facts.sandbox_op = 0
        _sandbox_call_failed(facts, event, kind)


def _hook_failed(facts: SandboxFacts, event: steps.Failed, target: OpTarget) -> None:
    """The text may hold secrets of what was called: it goes to the status, as a kubelet
    does it, and not into an event."""
    record = facts.containers[target.container]
    hook = record.post_start if target.kind == "post_start" else record.pre_stop
    if hook.op != event.op:
        return
    hook.done()
    if target.kind == "pre_stop":
        if not event.away:
            facts.event(
                "FailedPreStopHook", "PreStopHook failed", warning=True, container=record.name
            )
        return
    if event.away:
        # It may have been run: not a second time, as when a pool comes back.
        has_come_up(facts, record)
        return
    facts.event("FailedPostStartHook", "PostStartHook failed", warning=True, container=record.name)
    record.post_start_error = event.message
    facts.kill(record, Kill("FailedPostStartHook", facts.grace, restart=False))


def _sandbox_call_failed(facts: SandboxFacts, event: steps.Failed, kind: str) -> None:
    if kind == "run":
        if event.away:
            facts.stage = SandboxStage.UNSURE
            return
        facts.stage = SandboxStage.ABSENT
        facts.early_deaths.clear()
        if facts.deleting:
            return
        # Volumes are made first, and a kubelet tells of them in words of their own.
        mount = event.reason == "FailedMount"
        reason = "FailedMount" if mount else "FailedCreatePodSandBox"
        text = event.message if mount else f"Failed to create pod sandbox: {event.message}"
        facts.event(reason, text, warning=True)
        if not event.retryable:
            facts.finish(status_pb2.SANDBOX_STATE_FAILED, event.reason, event.message)
            return
        facts.trouble = (reason, event.message)
        facts.touch()
    elif not event.away:
        facts.event("FailedKillPod", f"error killing pod: {event.message}", warning=True)
    if not event.away:
        facts.sandbox_retry_at = facts.sandbox_retry.failed(facts.now)


def _done(facts: SandboxFacts, event: steps.Done) -> None:
    target = facts.ops.pop(event.op, None)
    if target is None:
        return
    kind = target.kind
    if kind == "stop":
        record = facts.containers[target.container]
        if record.stop_op == event.op:
            record.stopped_at = facts.now
    elif kind == "clear":
        record = facts.containers[target.container]
        if record.op == event.op:
            record.op = 0
            record.stage = Stage.IDLE
    elif kind == "garbage":
        facts.collecting.pop(event.op)
    elif kind in ("post_start", "pre_stop"):
        record = facts.containers[target.container]
        hook: HookRun = record.post_start if kind == "post_start" else record.pre_stop
        if hook.op == event.op:
            hook.done()
            if kind == "post_start":
                has_come_up(facts, record)
    elif kind == "resize":
        resizing.resized(facts, event.op, target.container)
    elif kind == "update" and facts.update_op == event.op:
        facts.update_op = 0
        if facts.update_sent is facts.spec:
            facts.update_from = None
        else:
            facts.update_from = facts.update_sent
        facts.update_sent = None
    elif facts.sandbox_op == event.op:
        facts.sandbox_op = 0
        facts.sandbox_retry.reset()
        if kind == "stop_sandbox":
            facts.stage = SandboxStage.STOPPED
        elif kind == "remove":
            facts.stage = SandboxStage.ABSENT
            facts.move_to(status_pb2.SANDBOX_STATE_FAILED)
            facts.gone = True
            facts.touch()


def _cancelled(facts: SandboxFacts, event: steps.Cancelled) -> None:
    target = facts.ops.pop(event.op, None)
    facts.cancelled.discard(event.op)
    if target is None:
        return
    if target.kind == "run" and facts.sandbox_op == event.op:
        facts.sandbox_op = 0
        facts.stage = SandboxStage.ABSENT
    elif target.kind == "start":
        record = facts.containers[target.container]
        if record.op == event.op:
            record.op = 0
            record.stage = Stage.IDLE
            record.early_exit = None
    elif target.kind == "image":
        record = facts.containers[target.container]
        if record.work.op == event.op:
            record.work.drop()


def _container_exited(facts: SandboxFacts, event: ContainerExited) -> None:
    record = facts.containers.get(event.ref.name)
    if record is None or event.ref.attempt != record.attempt:
        return
    if record.stage is Stage.RUNNING and record.ref is not None:
        if record.ref.id == event.ref.id:
            facts.exited(record, event.exit)
    elif record.stage is Stage.STARTING:
        record.early_exit = event
    elif record.stage is Stage.UNSURE:
        # So it had been started after all.
        record.ref = event.ref
        record.image = record.starting
        record.ran_in_this_sandbox = True
        facts.exited(record, event.exit)
        main_has_started(facts, record)


def _lost(facts: SandboxFacts, event: steps.RuntimeLost) -> None:
    facts.hold_still()
    # The host itself sends an inventory when the runtime is back.
    facts.observe_asked = True


def _delete(facts: SandboxFacts, event: steps.Delete) -> None:
    grace = facts.grace
    if event.grace_seconds is not None:
        grace = max(0, round(event.grace_seconds * SECOND))
    deadline = facts.now + grace
    before = facts.persisted.deletion_deadline
    if before is not None and deadline >= before:
        return
    reason = event.reason or facts.persisted.deletion_reason
    facts.persist(deletion_deadline=deadline, deletion_reason=reason)
    facts.touch()


def _over_limit(facts: SandboxFacts, event: SandboxOverLimit) -> None:
    """Evicted, as a kubelet does it: almost at once."""
    if _fail_early(facts, wording.EVICTED, event.message, SECOND):
        facts.event(wording.EVICTED, event.message, warning=True)


def _drained(facts: SandboxFacts, event: steps.Drained) -> None:
    _fail_early(facts, wording.TERMINATED, wording.DRAINED_MESSAGE, facts.grace)


def _fail_early(facts: SandboxFacts, reason: str, message: str, grace: int) -> bool:
    """False where its end is decided already."""
    if facts.ending is not None or facts.deleting or facts.terminal:
        return False
    facts.persist(
        failing_deadline=facts.now + grace, failing_reason=reason, failing_message=message
    )
    facts.ending = failing(facts.persisted)
    return True


def _start_record(facts: SandboxFacts, op: int) -> ContainerRecord | None:
    target = facts.ops.pop(op, None)
    facts.cancelled.discard(op)
    if target is None or target.kind != "start":
        return None
    record = facts.containers[target.container]
    return record if record.op == op and record.stage is Stage.STARTING else None


def _died(facts: SandboxFacts, event: SandboxDied) -> None:
    sandbox_died(facts, event.id)


def _observed(facts: SandboxFacts, event: steps.Observed) -> None:
    known = facts.all_started_at
    if observe(facts, event.sandbox, event.as_of):
        for record in facts.mains:
            if record.ended is not None or record.running:
                main_has_started(facts, record)
    if facts.all_started_at != known:
        facts.all_started_at = max(c.started_at for c in facts.mains) or facts.now


_HANDLERS: dict[type, Callable[[SandboxFacts, Any], None]] = {
    steps.ImageReady: images.ready,
    steps.SandboxReady: _sandbox_ready,
    steps.Started: _started,
    steps.Failed: _failed,
    steps.Done: _done,
    steps.Cancelled: _cancelled,
    steps.RuntimeLost: _lost,
    steps.Observed: _observed,
    steps.Delete: _delete,
    steps.Update: updates.update,
    steps.Reconsidered: updates.reconsidered,
    steps.Probed: probed,
    ContainerExited: _container_exited,
    SandboxDied: _died,
    SandboxOverLimit: _over_limit,
    steps.Drained: _drained,
}
