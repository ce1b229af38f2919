"""Asking the probes of what runs, and acting on their answers."""

from __future__ import annotations

from vknode.pool.engine import steps, wording
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, Kill, Role, Stage
from vknode.pool.engine.facts import SandboxFacts
from vknode.pool.engine.probe_counts import ProbeCounts
from vknode.pool.engine.probes import Kind, Verdict
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2


def ask_probes(facts: SandboxFacts) -> None:
    """Every question that is due. What is being stopped is only asked whether it is ready:
    nobody restarts it any more, but traffic may still go to it."""
    for record in facts.containers.values():
        if record.stage is not Stage.RUNNING or not record.probes.began:
            continue
        assert record.ref is not None
        ending = _ending(facts, record)
        for state in record.probes.states:
            due = state.due_at()
            if due is None or (ending and state.kind is not Kind.READINESS):
                continue
            if facts.now < due:
                facts.wake_by(due)
                continue
            probe = state.spec
            state.ask(facts.new_op("probe", record.name), facts.now)
            facts.act(
                steps.Probe(
                    state.op,
                    record.ref,
                    facts.pod_ips,
                    probe.handler,
                    max(1, probe.timeout_seconds),
                )
            )


def probed(facts: SandboxFacts, event: steps.Probed) -> None:
    """An answer."""
    target = facts.ops.pop(event.op, None)
    if target is None:
        return
    record = facts.containers[target.container]
    state = record.probes.find(event.op)
    if state is None:
        return
    counts = record.probe_counts.setdefault(state.kind, ProbeCounts())
    counts.count(event.outcome, facts.now - state.asked_at, early=state.asked_early)
    ready, started = record.ready, record.started
    verdict = record.probes.answered(state, event.outcome, facts.now)
    # Whether it lives was asked before its end began: a container that is leaving may well fail
    # that, and it is no fault of anybody. (A kubelet tells it all the same.)
    idle = _ending(facts, record) and state.kind is not Kind.READINESS
    if state.tells(event.outcome) and not facts.terminal and not idle:
        _tell(facts, record, state.kind, event.outcome)
    if verdict is Verdict.KILL and not idle:
        _kill(facts, record, state.kind, state.spec)
    if (ready, started) != (record.ready, record.started):
        remember(facts)
        facts.touch()


def _ending(facts: SandboxFacts, record: ContainerRecord) -> bool:
    return facts.deleting or record.stop_deadline is not None


def remember(facts: SandboxFacts) -> None:
    """Keep what the probes have settled: after a restart of the pool, a container that was
    ready is ready."""
    known = {
        record.ref.id: (record.started, record.ready)
        for record in facts.containers.values()
        if record.ref is not None and record.probes.states and record.started
    }
    if known != facts.persisted.probed:
        facts.persist(probed=known)


def _tell(facts: SandboxFacts, record: ContainerRecord, kind: Kind, outcome: ProbeOutcome) -> None:
    if outcome.result is ProbeResult.WARNING:
        reason, text = "ProbeWarning", f"{kind.value} probe warning: {outcome.output}"
    elif outcome.result is ProbeResult.ERROR:
        reason = "Unhealthy"
        text = f"{kind.value} probe errored and resulted in unknown state: {outcome.output}"
    else:
        reason, text = "Unhealthy", f"{kind.value} probe failed: {outcome.output}"
    facts.event(reason, text, warning=True, container=record.name)


def _kill(facts: SandboxFacts, record: ContainerRecord, kind: Kind, probe: spec_pb2.Probe) -> None:
    grace = facts.grace
    if probe.HasField("termination_grace_period_seconds"):
        grace = probe.termination_grace_period_seconds * SECOND
    policy = record.spec.restart_policy or facts.spec.restart_policy
    again = record.role is not Role.MAIN or policy != spec_pb2.RESTART_POLICY_NEVER
    message = wording.failed_probe(record.name, kind.value.lower(), init=record.init, again=again)
    facts.kill(record, Kill(message, grace, restart=again, lenient_backoff=True))
