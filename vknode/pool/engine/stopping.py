"""Ending containers: pre-stop hook, the turn of sidecars, stop signal, kill.

Theory of operation. `stop` is called again and again for a running instance until its exit
is told. Each call takes the instance one step on, as far as it can go now:

| step      | goes on when                                                        |
|-----------|---------------------------------------------------------------------|
| announced | at once: the event, the deadline                                    |
| hook      | the pre-stop hook is done or has failed, or the deadline is there    |
| turn      | (whole sandbox only) nothing that a sidecar serves runs any more, or |
|           | the deadline is there                                               |
| signal    | the runtime has stopped it: stop signal, then SIGKILL at the deadline |
| wait      | its exit is told; an inventory is asked for when that takes long     |

The deadline counts from the moment of the decision, whatever the hook takes. What is left
for the signal is never less than 2 s, as on a kubelet, unless the end was asked for with no
grace at all: then there is no hook either. A sooner deadline than the one before holds.

Sources: pkg/kubelet/kuberuntime/kuberuntime_container.go (killContainer),
kuberuntime_termination_order.go.
"""

from __future__ import annotations

from vknode.pool.engine import steps
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, HookRun, HookStage, Role, Stage
from vknode.pool.engine.facts import EXIT_LAG, SandboxFacts, SandboxStage
from vknode.pool.v1 import spec_pb2

LEAST_GRACE = 2 * SECOND


def stop(
    facts: SandboxFacts,
    record: ContainerRecord,
    deadline: int,
    message: str,
    *,
    my_turn: bool = True,
    hooks: bool = True,
) -> None:
    """See to it that the running instance is asked to end by `deadline`."""
    assert record.ref is not None
    if record.stopped_at is not None:
        _wait_for_exit(facts, record)
        return
    shorter = record.stop_deadline is not None and deadline < record.stop_deadline
    if record.stop_deadline is None:
        _announce(facts, record, deadline, message, hooks=hooks)
    elif shorter:
        record.stop_deadline = deadline
        record.stop_at_once = deadline <= facts.now
    if not _hook_done(facts, record):
        return
    assert record.stop_deadline is not None
    if not my_turn and facts.now < record.stop_deadline:
        facts.wake_by(record.stop_deadline)
        return
    if record.stop_op and not shorter:
        return
    if not record.stop_op and record.stop_retry_at is not None and not shorter:
        if facts.now < record.stop_retry_at:
            facts.wake_by(record.stop_retry_at)
            return
        record.stop_retry_at = None
    left = max(0, record.stop_deadline - facts.now)
    if not record.stop_at_once:
        left = max(left, LEAST_GRACE)
    record.stop_op = facts.new_op("stop", record.name)
    facts.act(steps.StopContainer(record.stop_op, record.ref, left / SECOND))


def quiet(facts: SandboxFacts, deadline: int) -> bool:
    """Stop everything; True once nothing runs and nothing is being started."""
    for record in facts.containers.values():
        facts.drop_image_work(record)
        if record.stage is Stage.STARTING:
            facts.cancel(record.op)
        elif record.stage is Stage.RUNNING:
            facts.drop_hook(record.post_start)
            stop(
                facts,
                record,
                deadline,
                f"Stopping container {record.name}",
                my_turn=_its_turn(facts, record),
            )
    if facts.stage is SandboxStage.CREATING:
        facts.cancel(facts.sandbox_op)
        return False
    if facts.stage is SandboxStage.UNSURE:
        return False
    return not any(c.live for c in facts.containers.values())


def _announce(
    facts: SandboxFacts, record: ContainerRecord, deadline: int, message: str, *, hooks: bool
) -> None:
    reason = facts.persisted.deletion_reason if facts.deleting else ""
    facts.event(reason or "Killing", message, container=record.name)
    record.stop_deadline = deadline
    record.stop_at_once = deadline <= facts.now
    if hooks and record.spec.HasField("pre_stop"):
        record.pre_stop.stage = HookStage.WANTED


def _wait_for_exit(facts: SandboxFacts, record: ContainerRecord) -> None:
    assert record.stopped_at is not None
    due = record.stopped_at + EXIT_LAG
    if facts.now >= due:
        record.stopped_at = facts.now
        ask_inventory(facts)
        due = facts.now + EXIT_LAG
    facts.wake_by(due)


def _hook_done(facts: SandboxFacts, record: ContainerRecord) -> bool:
    """Takes the pre-stop hook on; True when the stop may go on."""
    assert record.ref is not None and record.stop_deadline is not None
    hook = record.pre_stop
    if hook.stage is HookStage.NONE:
        return True
    if facts.now >= record.stop_deadline:
        facts.drop_hook(hook)
        return True
    left = (record.stop_deadline - facts.now) / SECOND
    if not take_hook_on(facts, record, hook, record.spec.pre_stop, "pre_stop", left):
        facts.wake_by(record.stop_deadline)
        return False
    return True


def take_hook_on(
    facts: SandboxFacts,
    record: ContainerRecord,
    hook: HookRun,
    handler: spec_pb2.Handler,
    kind: str,
    timeout: float | None,
) -> bool:
    """Begins a wanted hook; True once it is over. What the runtime runs ends by its answer."""
    if hook.stage is HookStage.WANTED:
        hook.stage = HookStage.RUNNING
        if handler.HasField("sleep"):
            hook.until = facts.now + handler.sleep.seconds * SECOND
        else:
            assert record.ref is not None
            hook.op = facts.new_op(kind, record.name)
            facts.act(steps.RunHook(hook.op, record.ref, facts.pod_ips, handler, timeout))
    if hook.stage is HookStage.RUNNING and not hook.op:
        if facts.now < hook.until:
            facts.wake_by(hook.until)
            return False
        hook.done()
    return hook.stage is HookStage.NONE


def _its_turn(facts: SandboxFacts, record: ContainerRecord) -> bool:
    """Sidecars end after all main containers, the last one first."""
    if record.role is not Role.SIDECAR:
        return True
    later = facts.inits[facts.inits.index(record) + 1 :]
    waits_for = [*facts.mains, *(c for c in later if c.role is Role.SIDECAR)]
    return not any(c.live for c in waits_for)


def ask_inventory(facts: SandboxFacts) -> None:
    if not facts.observe_asked:
        facts.observe_asked = True
        facts.act(steps.Observe())
