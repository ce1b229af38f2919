"""What is to be done next, from the facts alone.

Called after every event and again whenever `wake_at` is due. It is level-triggered:
it never looks at which event came, so a missed, late or doubled one cannot lead it
astray. Everything it asks for is marked as asked in the same breath.
"""

from __future__ import annotations

from vknode.pool.engine import steps, wording
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, ImageStage, Role, Stage
from vknode.pool.engine.facts import Ending, SandboxFacts, SandboxStage
from vknode.pool.engine.probing import ask_probes
from vknode.pool.engine.resizing import resize
from vknode.pool.engine.restarting import restart, restart_all
from vknode.pool.engine.starting import create_sandbox, prepare_image, run_post_start, start_one
from vknode.pool.engine.stopping import ask_inventory, quiet, stop
from vknode.pool.v1 import spec_pb2, status_pb2


def plan(facts: SandboxFacts) -> None:
    facts.wake_at = None
    if facts.gone:
        return
    if facts.hold:
        ask_inventory(facts)
        return
    _collect(facts)
    if facts.deleting:
        _delete(facts)
    elif facts.terminal:
        _rest(facts)
    else:
        _run(facts)


def _collect(facts: SandboxFacts) -> None:
    """Instances that nobody can ask for any more (only the one before is kept)."""
    if facts.garbage and facts.now < facts.collect_at:
        facts.wake_by(facts.collect_at)
        return
    for ref in facts.garbage:
        if ref in facts.collecting.values():
            continue
        op = facts.new_op("garbage")
        facts.collecting[op] = ref
        facts.act(steps.RemoveContainer(op, ref, keep_log=False))
    facts.garbage.clear()


# -- running --------------------------------------------------------------------


def _run(facts: SandboxFacts) -> None:
    _check_deadline(facts)
    if facts.ending is None and facts.stage is SandboxStage.DEAD:
        if not quiet(facts, facts.dead_deadline):
            return
        _after_death(facts)
    elif facts.ending is None and not restart_all(facts):
        _decide_end(facts)
    if facts.ending is not None:
        _end(facts, facts.ending)
    if facts.terminal:
        _rest(facts)
        return
    if facts.ending is not None:
        return
    _keep_running(facts)
    turn = [] if facts.restarting_all else _turn(facts)
    for record in turn:
        if record.stage is Stage.EXITED and record.restart_wanted(facts.spec):
            restart(facts, record)
    for record in (*turn, *_soon(facts)):
        if record.stage is Stage.IDLE:
            prepare_image(facts, record)
    if not facts.images_ready_at and all(
        c.work.stage is ImageStage.READY or c.stage is not Stage.IDLE for c in turn
    ):
        facts.images_ready_at = facts.now
    if facts.stage is SandboxStage.ABSENT:
        create_sandbox(facts)
    elif facts.stage is SandboxStage.READY:
        resize(facts)
        start_one(facts, turn)
        _update(facts)
        ask_probes(facts)


def _keep_running(facts: SandboxFacts) -> None:
    """What is due for the instances that run, whoever's turn it is."""
    for record in facts.containers.values():
        if record.stage is not Stage.RUNNING:
            continue
        if record.kill is not None:
            facts.drop_hook(record.post_start)
            kill = record.kill
            stop(facts, record, record.kill_deadline, kill.message, hooks=kill.hooks)
        else:
            run_post_start(facts, record)


def _check_deadline(facts: SandboxFacts) -> None:
    if facts.ending is not None or not facts.spec.HasField("active_deadline_seconds"):
        return
    deadline = facts.persisted.created_at + facts.spec.active_deadline_seconds * SECOND
    if facts.now < deadline:
        facts.wake_by(deadline)
        return
    facts.event(wording.DEADLINE_REASON, wording.DEADLINE_MESSAGE)
    facts.ending = Ending(
        status_pb2.SANDBOX_STATE_FAILED,
        wording.DEADLINE_REASON,
        wording.DEADLINE_MESSAGE,
        facts.now + facts.grace,
    )


def _decide_end(facts: SandboxFacts) -> None:
    """Whether nothing will run any more; marks initialization on the way."""
    if not facts.initialized:
        _pass_inits(facts)
        current = facts.current_init()
        if current is None:
            facts.initialized = True
            facts.touch()
        elif current.stage is Stage.EXITED and not current.restart_wanted(facts.spec):
            _decide(facts, status_pb2.SANDBOX_STATE_FAILED)
            return
    if all(c.stage is Stage.EXITED and not c.restart_wanted(facts.spec) for c in facts.mains):
        _decide(facts, facts.state_by_exit_codes())


def _pass_inits(facts: SandboxFacts) -> None:
    """An init container is passed when it has done its work; a sidecar, once started.
    Whatever becomes of it later, those behind it do not wait again."""
    for record in facts.inits:
        if record.passed:
            continue
        if not (record.succeeded if record.role is Role.INIT else record.started):
            return
        record.passed = True
        facts.touch()


def _decide(facts: SandboxFacts, state: status_pb2.SandboxState.ValueType) -> None:
    facts.ending = Ending(state, "", "", facts.now + facts.grace)


def _end(facts: SandboxFacts, ending: Ending) -> None:
    if quiet(facts, ending.deadline):
        facts.finish(ending.state, ending.reason, ending.message)
    else:
        ask_probes(facts)


def _after_death(facts: SandboxFacts) -> None:
    """The sandbox died and all in it has ended: another one, or the end."""
    _decide_end(facts)
    if facts.ending is not None:
        return
    records = facts.containers.values()
    if facts.spec.restart_policy == spec_pb2.RESTART_POLICY_NEVER and any(
        c.ended is not None for c in records
    ):
        _decide(facts, status_pb2.SANDBOX_STATE_FAILED)
        return
    facts.event("SandboxChanged", wording.SANDBOX_CHANGED)
    facts.stage = SandboxStage.ABSENT
    facts.sandbox = None
    facts.sandbox_retry_at = None
    facts.attempt += 1
    facts.update_from = None  # the new one is made from the newest spec
    facts.begin_anew()
    for record in records:
        record.ran_in_this_sandbox = False
    for record in facts.inits:
        if record.stage is Stage.EXITED:
            record.next_instance()
    facts.touch()


def _turn(facts: SandboxFacts) -> list[ContainerRecord]:
    """Who may be started now, in this order."""
    current = facts.current_init()
    kept = [record for record in facts.sidecars() if record.passed]
    if current is None:
        return [*facts.ephemerals, *kept, *facts.mains]
    return [*facts.ephemerals, *kept, current]


def _soon(facts: SandboxFacts) -> list[ContainerRecord]:
    """Whose images are worth having before their turn: the next after a running init."""
    current = facts.current_init()
    if current is None or current.stage is not Stage.RUNNING:
        return []
    following = facts.inits.index(current) + 1
    return [facts.inits[following]] if following < len(facts.inits) else facts.mains


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
    if not quiet(facts, facts.persisted.deletion_deadline):
        ask_probes(facts)
        return
    if not facts.terminal and all(c.ended is not None for c in facts.mains):
        facts.finish(facts.state_by_exit_codes())
    if facts.sandbox_op or facts.update_op:
        return
    if facts.sandbox_retry_at is not None and facts.now < facts.sandbox_retry_at:
        facts.wake_by(facts.sandbox_retry_at)
        return
    facts.sandbox_op = facts.new_op("remove")
    facts.act(steps.RemoveSandbox(facts.sandbox_op))
