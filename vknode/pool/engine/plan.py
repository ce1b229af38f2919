"""What is to be done next, from the facts alone.

Called after every event and again whenever `wake_at` is due. It is level-triggered:
it never looks at which event came, so a missed, late or doubled one cannot lead it
astray. Everything it asks for is marked as asked in the same breath.
"""

from __future__ import annotations

from vknode.pool.engine import steps, wording
from vknode.pool.engine.absorb import pull
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, ImageStage, Stage
from vknode.pool.engine.facts import EXIT_LAG, SandboxFacts, SandboxStage
from vknode.pool.v1 import spec_pb2, status_pb2


def plan(facts: SandboxFacts) -> None:
    facts.wake_at = None
    if facts.gone:
        return
    if facts.hold:
        _ask_inventory(facts)
        return
    _collect(facts)
    if facts.deleting:
        _delete(facts)
    elif facts.terminal:
        _rest(facts)
    else:
        _run(facts)


def _ask_inventory(facts: SandboxFacts) -> None:
    if not facts.observe_asked:
        facts.observe_asked = True
        facts.act(steps.Observe())


def _collect(facts: SandboxFacts) -> None:
    """Instances that nobody can ask for any more (only the one before is kept)."""
    for ref in facts.garbage:
        facts.act(steps.RemoveContainer(facts.new_op("garbage"), ref, keep_log=False))
    facts.garbage.clear()


# -- running --------------------------------------------------------------------


def _run(facts: SandboxFacts) -> None:
    _check_deadline(facts)
    if facts.failing is not None:
        reason, message, deadline = facts.failing
        if _quiet(facts, deadline):
            facts.finish(status_pb2.SANDBOX_STATE_FAILED, reason, message)
            _rest(facts)
        return
    if facts.stage is SandboxStage.DEAD:
        if not _quiet(facts, facts.dead_deadline):
            return
        _after_death(facts)
    elif _decide_end(facts):
        pass
    if facts.terminal:
        _rest(facts)
        return
    turn = _turn(facts)
    for record in turn:
        if record.stage is Stage.EXITED and record.restart_wanted(facts.spec):
            _restart(facts, record)
        if record.forced and record.stage is Stage.RUNNING:
            _stop(
                facts,
                record,
                facts.now + facts.grace,
                f"Container {record.name} definition changed, will be restarted",
            )
    for record in (*turn, *_soon(facts)):
        if record.stage is Stage.IDLE:
            _prepare_image(facts, record)
    if not facts.images_ready_at and all(
        c.work.stage is ImageStage.READY or c.stage is not Stage.IDLE for c in turn
    ):
        facts.images_ready_at = facts.now
    if facts.stage is SandboxStage.ABSENT:
        _create_sandbox(facts)
    elif facts.stage is SandboxStage.READY:
        _start_one(facts, turn)
        _update(facts)


def _check_deadline(facts: SandboxFacts) -> None:
    if facts.failing is not None or not facts.spec.HasField("active_deadline_seconds"):
        return
    deadline = facts.persisted.created_at + facts.spec.active_deadline_seconds * SECOND
    if facts.now < deadline:
        facts.wake_by(deadline)
        return
    facts.event(wording.DEADLINE_REASON, wording.DEADLINE_MESSAGE)
    facts.failing = (
        wording.DEADLINE_REASON,
        wording.DEADLINE_MESSAGE,
        facts.now + facts.grace,
    )


def _decide_end(facts: SandboxFacts) -> bool:
    """End it where nothing will run any more; marks initialization on the way."""
    if not facts.initialized:
        current = facts.current_init()
        if current is None:
            facts.initialized = True
            facts.touch()
        elif current.stage is Stage.EXITED and not current.restart_wanted(facts.spec):
            facts.finish(status_pb2.SANDBOX_STATE_FAILED)
            return True
    if all(c.stage is Stage.EXITED and not c.restart_wanted(facts.spec) for c in facts.mains):
        facts.finish_by_exit_codes()
        return True
    return False


def _after_death(facts: SandboxFacts) -> None:
    """The sandbox died and all in it has ended: another one, or the end."""
    if _decide_end(facts):
        return
    records = facts.containers.values()
    if facts.spec.restart_policy == spec_pb2.RESTART_POLICY_NEVER and any(
        c.ended is not None for c in records
    ):
        facts.finish(status_pb2.SANDBOX_STATE_FAILED)
        return
    facts.event("SandboxChanged", wording.SANDBOX_CHANGED)
    facts.stage = SandboxStage.ABSENT
    facts.sandbox = None
    facts.sandbox_retry_at = None
    facts.attempt += 1
    facts.update_from = None  # the new one is made from the newest spec
    facts.initialized = not facts.inits
    for record in records:
        record.ran_in_this_sandbox = False
    for record in facts.inits:
        if record.stage is Stage.EXITED:
            record.next_instance()
    facts.touch()


def _turn(facts: SandboxFacts) -> list[ContainerRecord]:
    current = facts.current_init()
    return facts.mains if current is None else [current]


def _soon(facts: SandboxFacts) -> list[ContainerRecord]:
    """Whose images are worth having before their turn: the next after a running init."""
    current = facts.current_init()
    if current is None or current.stage is not Stage.RUNNING:
        return []
    following = facts.inits.index(current) + 1
    return [facts.inits[following]] if following < len(facts.inits) else facts.mains


def _restart(facts: SandboxFacts, record: ContainerRecord) -> None:
    assert record.ended is not None
    finished = record.ended.exit.finished_at
    until = record.crash_loop.until(finished)
    if facts.now >= until:
        record.crash_loop.restarted(finished, facts.now)
        record.next_instance()
        facts.touch()
        return
    facts.wake_by(until)
    if record.waiting_reason != wording.CRASH_LOOP:
        text = wording.crash_loop(record.crash_loop.span, record.name, facts.spec)
        record.wait(wording.CRASH_LOOP, text)
        facts.event(
            "BackOff",
            wording.crash_loop_event(record.name, facts.spec),
            warning=True,
            container=record.name,
        )
        facts.touch()


def _prepare_image(facts: SandboxFacts, record: ContainerRecord) -> None:
    work = record.work
    if work.stage is ImageStage.FAILED:
        if work.retry_at is None:
            return
        if facts.now < work.retry_at:
            facts.wake_by(work.retry_at)
            _show_back_off(facts, record)
            return
    elif work.stage is not ImageStage.NONE or record.spec.config_error:
        return
    # What was said stays said until there is something better to say.
    if record.spec.image_pull_policy == spec_pb2.IMAGE_PULL_POLICY_ALWAYS:
        pull(facts, record)
        return
    work.stage = ImageStage.LOOKING
    work.asked_at = facts.now
    work.op = facts.new_op("image", record.name)
    facts.act(
        steps.EnsureImage(work.op, record.name, record.spec.image, spec_pb2.IMAGE_PULL_POLICY_NEVER)
    )


def _show_back_off(facts: SandboxFacts, record: ContainerRecord) -> None:
    work = record.work
    if work.backs_off_at is None:
        return
    if facts.now < work.backs_off_at:
        facts.wake_by(work.backs_off_at)
        return
    work.backs_off_at = None
    text = f"Back-off pulling image {wording.quoted(record.spec.image)}"
    work.message = f"{text}: {work.reason}: {work.message}"
    work.reason = wording.IMAGE_BACK_OFF
    facts.event("BackOff", text, container=record.name)
    facts.event("Failed", f"Error: {work.reason}", warning=True, container=record.name)
    facts.touch()


def _create_sandbox(facts: SandboxFacts) -> None:
    if facts.sandbox_retry_at is not None and facts.now < facts.sandbox_retry_at:
        facts.wake_by(facts.sandbox_retry_at)
        return
    facts.stage = SandboxStage.CREATING
    facts.sandbox_op = facts.new_op("run")
    facts.update_from = None
    facts.act(steps.RunSandbox(facts.sandbox_op, facts.attempt))


def _start_one(facts: SandboxFacts, turn: list[ContainerRecord]) -> None:
    """At most one start at a time, the first that can, as a kubelet goes through them."""
    if any(
        c.stage in (Stage.STARTING, Stage.UNSURE, Stage.CLEARING) for c in facts.containers.values()
    ):
        return
    assert facts.sandbox is not None
    for record in turn:
        work = record.work
        if record.stage is not Stage.IDLE or work.stage is not ImageStage.READY:
            continue
        if record.held or record.spec.config_error:
            continue
        if record.retry_at is not None and facts.now < record.retry_at:
            facts.wake_by(record.retry_at)
            continue
        assert work.image is not None
        problem = wording.not_root_problem(
            facts.spec, record.spec, work.image.uid, work.image.username
        )
        if problem:
            record.held = True
            record.wait(wording.CONFIG_ERROR, problem)
            facts.event("Failed", f"Error: {problem}", warning=True, container=record.name)
            facts.touch()
            continue
        record.stage = Stage.STARTING
        record.op = facts.new_op("start", record.name)
        facts.act(
            steps.StartContainer(record.op, record.spec, facts.sandbox, work.image, record.attempt)
        )
        return


def _update(facts: SandboxFacts) -> None:
    if facts.update_from is None or facts.update_op:
        return
    if facts.update_retry_at is not None:
        if facts.now < facts.update_retry_at:
            facts.wake_by(facts.update_retry_at)
            return
        facts.update_retry_at = None
    facts.update_op = facts.new_op("update")
    facts.update_sent = facts.spec
    facts.act(steps.UpdateSandbox(facts.update_op, facts.update_from, facts.spec))


# -- ending ---------------------------------------------------------------------


def _stop(facts: SandboxFacts, record: ContainerRecord, deadline: int, message: str) -> None:
    """See to it that the running instance is asked to end by `deadline`."""
    assert record.ref is not None
    first = record.stop_deadline is None
    if record.stopped_at is not None:
        due = record.stopped_at + EXIT_LAG
        if facts.now >= due:
            record.stopped_at = facts.now
            _ask_inventory(facts)
            due = facts.now + EXIT_LAG
        facts.wake_by(due)
        return
    shorter = record.stop_deadline is not None and deadline < record.stop_deadline
    if record.stop_op and not shorter:
        return
    if not record.stop_op and record.stop_retry_at is not None and not shorter:
        if facts.now < record.stop_retry_at:
            facts.wake_by(record.stop_retry_at)
            return
        record.stop_retry_at = None
    if first:
        reason = facts.persisted.deletion_reason if facts.deleting else ""
        facts.event(reason or "Killing", message, container=record.name)
    if record.stop_deadline is None or shorter:
        record.stop_deadline = deadline
    record.stop_op = facts.new_op("stop", record.name)
    grace = max(0, record.stop_deadline - facts.now) / SECOND
    facts.act(steps.StopContainer(record.stop_op, record.ref, grace))


def _quiet(facts: SandboxFacts, deadline: int) -> bool:
    """Stop everything; True once nothing runs and nothing is being started."""
    for record in facts.containers.values():
        facts.drop_image_work(record)
        if record.stage is Stage.STARTING:
            facts.cancel(record.op)
        elif record.stage is Stage.RUNNING:
            _stop(facts, record, deadline, f"Stopping container {record.name}")
    if facts.stage is SandboxStage.CREATING:
        facts.cancel(facts.sandbox_op)
        return False
    if facts.stage is SandboxStage.UNSURE:
        return False
    return not any(c.live for c in facts.containers.values())


def _rest(facts: SandboxFacts) -> None:
    """Ended for good: containers and logs stay, processes and network go."""
    for record in facts.containers.values():
        facts.drop_image_work(record)
    if facts.stage not in (SandboxStage.READY, SandboxStage.DEAD) or facts.sandbox_op:
        return
    if facts.sandbox_retry_at is not None and facts.now < facts.sandbox_retry_at:
        facts.wake_by(facts.sandbox_retry_at)
        return
    facts.sandbox_op = facts.new_op("stop_sandbox")
    facts.act(steps.StopSandbox(facts.sandbox_op))


def _delete(facts: SandboxFacts) -> None:
    assert facts.persisted.deletion_deadline is not None
    if not _quiet(facts, facts.persisted.deletion_deadline):
        return
    if not facts.terminal and all(c.ended is not None for c in facts.mains):
        facts.finish_by_exit_codes()
    if facts.sandbox_op or facts.update_op:
        return
    if facts.sandbox_retry_at is not None and facts.now < facts.sandbox_retry_at:
        facts.wake_by(facts.sandbox_retry_at)
        return
    facts.sandbox_op = facts.new_op("remove")
    facts.act(steps.RemoveSandbox(facts.sandbox_op))
