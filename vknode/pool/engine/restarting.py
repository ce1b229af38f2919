"""Ended containers that run again: one with its back-off, or all of them at once.

All at once (a container's rule asks for it): what runs is killed without hooks and grace,
then every container begins anew, init containers first. A kubelet restarts them at once,
however often; here the container that asked has its usual crash-loop back-off, because
otherwise one that fails at its start would keep its whole Pod, and the runtime, busy.
"""

from __future__ import annotations

from vknode.pool.engine import wording
from vknode.pool.engine.container import ContainerRecord, Ended, Kill, Role, Stage
from vknode.pool.engine.facts import SandboxFacts


def restart(facts: SandboxFacts, record: ContainerRecord) -> None:
    """The next instance, if its back-off is over; else say that it waits."""
    if _backs_off(facts, record):
        return
    _count(facts, record)
    record.next_instance()
    facts.touch()


def _last_end(record: ContainerRecord) -> Ended | None:
    """From where the back-off counts; None: there is none."""
    # A kubelet that kills an instance starts the next one in the same breath, and then
    # looks at the end of the instance before for its back-off.
    return record.ended_before if record.lenient_backoff else record.ended


def _count(facts: SandboxFacts, record: ContainerRecord) -> None:
    """A restart goes ahead."""
    last = _last_end(record)
    if last is not None:
        record.crash_loop.restarted(last.exit.finished_at, facts.now)


def _backs_off(facts: SandboxFacts, record: ContainerRecord) -> bool:
    last = _last_end(record)
    until = facts.now if last is None else record.crash_loop.until(last.exit.finished_at)
    if facts.now >= until:
        return False
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
    return True


def restart_all(facts: SandboxFacts) -> bool:
    """Takes a restart of all containers on, if one was asked for; True while it lasts."""
    sources = [c for c in facts.containers.values() if c.asks_restart_of_all()]
    if not facts.restarting_all:
        if not sources:
            return False
        facts.restarting_all = True
        facts.persist(restarting_all=True)
        facts.touch()
    records = [c for c in facts.containers.values() if c.role is not Role.EPHEMERAL]
    for record in records:
        facts.drop_image_work(record)
        if record.stage is Stage.STARTING:
            facts.cancel(record.op)
        elif record.stage is Stage.RUNNING and record.kill is None:
            facts.kill(record, Kill("killing", 0, restart=True, hooks=False))
    if any(c.live for c in records):
        return True
    waiting = [source for source in sources if _backs_off(facts, source)]
    if waiting:
        return True
    for source in sources:
        _count(facts, source)
    for record in records:
        if record.stage is Stage.EXITED:
            record.next_instance()
    facts.begin_anew()
    facts.restarting_all = False
    facts.persist(restarting_all=False, began_anew_at=facts.now)
    facts.touch()
    return False
