"""Bringing a machine in line with what the runtime really has.

Used when the pool starts (everything is UNSURE then) and whenever an event or the
outcome of a call may have been missed. What a pending call is about is left to its
answer; absence counts only for what was known before the inventory was asked for;
an instance older than the one known is history. Where such a one runs (its start was given
up, and came after all) it is removed at once, and never shown: a container runs once.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable

from vknode.pool.engine import steps
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, Ended, Role, Stage, unknown_exit
from vknode.pool.engine.facts import SandboxFacts, SandboxStage
from vknode.pool.engine.probes import Probes
from vknode.pool.runtimes.facts import (
    ObservedContainer,
    ObservedSandbox,
    ObservedState,
    RunningSandbox,
)
from vknode.pool.v1 import status_pb2


def observe(facts: SandboxFacts, seen: ObservedSandbox | None, as_of: int) -> bool:
    """Take in an inventory. False: it is too old to settle what is unknown."""
    facts.observe_asked = False
    if facts.hold and as_of < facts.hold_since:
        return False
    facts.hold = False
    _observe_sandbox(facts, seen, as_of)
    groups: dict[str, list[ObservedContainer]] = {}
    for container in seen.containers if seen is not None else ():
        groups.setdefault(container.ref.name, []).append(container)
    for name, record in facts.containers.items():
        group = sorted(groups.get(name, ()), key=lambda c: c.ref.attempt)
        _observe_container(facts, record, group, seen, as_of)
    return True


def _observe_sandbox(facts: SandboxFacts, seen: ObservedSandbox | None, as_of: int) -> None:
    if facts.sandbox_op:
        return
    unsure = facts.stage is SandboxStage.UNSURE
    if seen is None:
        if unsure:
            facts.stage = SandboxStage.ABSENT
            facts.touch()
        elif facts.stage is SandboxStage.READY and facts.sandbox_known_at < as_of:
            _dies(facts)
        return
    if unsure:
        facts.attempt = seen.attempt
        facts.sandbox = RunningSandbox(seen.uid, seen.id, seen.attempt, seen.ips, seen.created_at)
        facts.sandbox_known_at = facts.now
        facts.pod_ips = seen.ips
        facts.stage = SandboxStage.READY if seen.ready else SandboxStage.DEAD
        facts.dead_deadline = facts.now + facts.grace
        facts.sandbox_ready_at = facts.sandbox_ready_at or seen.created_at
        facts.in_force = None if facts.resizing else facts.spec.resources
        facts.trouble = ("", "") if not facts.terminal else facts.trouble
        facts.move_to(status_pb2.SANDBOX_STATE_STARTING)
        facts.touch()
    elif (
        facts.stage is SandboxStage.READY
        and facts.sandbox is not None
        and facts.sandbox_known_at < as_of
        and (seen.id != facts.sandbox.id or not seen.ready)
    ):
        _dies(facts)


def _dies(facts: SandboxFacts) -> None:
    facts.stage = SandboxStage.DEAD
    facts.dead_deadline = facts.now + facts.grace
    facts.touch()


def _observe_container(
    facts: SandboxFacts,
    record: ContainerRecord,
    group: list[ObservedContainer],
    seen: ObservedSandbox | None,
    as_of: int,
) -> None:
    newest = group[-1] if group else None
    _remove_strays(facts, record, group)
    if record.stage in (Stage.STARTING, Stage.CLEARING):
        return  # the answer to the call will tell
    if record.stage is Stage.UNSURE:
        if newest is not None and newest.ref.attempt >= record.attempt:
            _take(facts, record, group, seen)
        else:
            record.stage = Stage.IDLE
            facts.touch()
        return
    if record.stage is Stage.RUNNING and record.ref is not None:
        mine = next((c for c in group if c.ref.id == record.ref.id), None)
        if mine is None:
            if record.known_at < as_of:
                facts.exited(record, unknown_exit(record.started_at, facts.now))
        elif mine.state is ObservedState.EXITED:
            facts.exited(record, mine.exit or unknown_exit(mine.started_at, facts.now))
        elif record.stopped_at is not None and record.stopped_at <= as_of:
            # It runs although a stop has "succeeded": stop it again.
            record.stop_op, record.stopped_at = 0, None


def _remove_strays(
    facts: SandboxFacts, record: ContainerRecord, group: list[ObservedContainer]
) -> None:
    """What has not ended although a newer instance is known, or the end of this one."""
    if record.stage is Stage.UNSURE:
        below = max((record.attempt, *(c.ref.attempt for c in group)))
    elif record.stage in (Stage.STARTING, Stage.CLEARING, Stage.RUNNING):
        below = record.attempt
    else:
        below = record.attempt + 1
    ends = (record.ended, record.ended_before)
    known = {end.ref.id for end in ends if end is not None and end.ref is not None}
    for one in group:
        alive = one.state is not ObservedState.EXITED and one.ref.id not in known
        if alive and one.ref.attempt < below and one.ref not in facts.garbage:
            facts.garbage.append(one.ref)


def _take(
    facts: SandboxFacts,
    record: ContainerRecord,
    group: list[ObservedContainer],
    seen: ObservedSandbox | None,
) -> None:
    """The record knows nothing for sure: believe the runtime."""
    newest = group[-1]
    if len(group) > 1 and record.ended is None:
        before = group[-2]
        if before.exit is not None:
            record.ended = Ended(before.ref.attempt, before.exit, before.ref)
        facts.garbage.extend(c.ref for c in group[:-2] if c.ref not in facts.garbage)
    elif record.ended_before is not None and record.ended_before.ref is not None:
        facts.garbage.append(record.ended_before.ref)
        record.ended_before = None
    record.attempt = newest.ref.attempt
    record.ref = newest.ref
    record.started_at = newest.started_at
    record.image = newest.image
    record.known_at = facts.now
    record.clear_waiting()
    if newest.state is ObservedState.CREATED:
        record.stage = Stage.CLEARING
        record.op = facts.new_op("clear", record.name)
        record.ref = None
        facts.act(steps.RemoveContainer(record.op, newest.ref, keep_log=True))
        facts.touch()
        return
    if newest.started_at:
        facts.first_started_at = min(facts.first_started_at or facts.now, newest.started_at)
    ran_at = newest.started_at or (newest.exit.finished_at if newest.exit else 0)
    anew = facts.persisted.began_anew_at
    record.ran_in_this_sandbox = seen is not None and ran_at >= max(seen.created_at, anew)
    if record.attempt and not record.crash_loop.span:
        record.crash_loop.approximate(record.attempt, newest.started_at)
    if newest.state is ObservedState.RUNNING:
        record.stage = Stage.RUNNING
        _resume(facts, record)
        facts.touch()
        return
    facts.exited(record, newest.exit or unknown_exit(newest.started_at, facts.now))
    if record.ran_in_this_sandbox or facts.terminal:
        return
    if record.role is Role.INIT or (record.role is not Role.EPHEMERAL and ran_at < anew):
        # Its work was for an earlier sandbox, or from before all began anew.
        record.next_instance()


def _resume(facts: SandboxFacts, record: ContainerRecord) -> None:
    """It runs already: what its probes said last is on record; its post-start hook is not
    run a second time; its resources are those set aside, unless a change was cut off."""
    record.probes = Probes.of(record.spec)
    if not facts.resizing:
        record.in_force, record.in_force_pod = record.spec.resources, facts.spec.resources
    if record.ref is None:
        return
    started, ready = facts.persisted.probed.get(record.ref.id, (False, False))
    # Any number below the shortest period; the same for this container each time.
    spread = zlib.crc32(record.ref.id.encode()) % SECOND
    record.probes.resume(
        started=started, ready=ready, started_at=record.started_at, now=facts.now, spread=spread
    )


def newest_of_each(observed: Iterable[ObservedSandbox]) -> dict[str, ObservedSandbox]:
    """By UID: the newest attempt of each sandbox, with the instances of all attempts."""
    found: dict[str, ObservedSandbox] = {}
    for one in observed:
        other = found.get(one.uid)
        if other is None:
            found[one.uid] = one
            continue
        newer = max(one, other, key=lambda s: s.attempt)
        found[one.uid] = dataclasses.replace(newer, containers=(*other.containers, *one.containers))
    return found
