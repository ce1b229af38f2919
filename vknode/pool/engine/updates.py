"""Newer specs: what they change for a sandbox that is there."""

from __future__ import annotations

from vknode.pool.engine import resizing, steps, support, wording
from vknode.pool.engine.container import ContainerRecord, Kill, Role, Stage
from vknode.pool.engine.facts import SandboxFacts
from vknode.pool.v1 import spec_pb2


def update(facts: SandboxFacts, event: steps.Update) -> None:
    _take(facts, event.spec, event.pending_reason, event.pending_message)


def reconsidered(facts: SandboxFacts, event: steps.Reconsidered) -> None:
    if facts.pending[0] and not (facts.deleting or facts.terminal or facts.ending):
        _take(facts, facts.wanted, event.pending_reason, event.pending_message)


def _take(facts: SandboxFacts, wanted: spec_pb2.SandboxSpec, reason: str, message: str) -> None:
    old = facts.spec
    resizing.take(facts, wanted, reason, message)
    if facts.update_from is None and support.reaches_runtime(old, facts.spec):
        facts.update_from = old
    _respec(facts)
    facts.touch()


def _respec(facts: SandboxFacts) -> None:
    """Every container's record learns of the newest spec."""
    new = facts.spec
    for container in new.ephemeral_containers:
        if container.name not in facts.containers:
            added = ContainerRecord(container, Role.EPHEMERAL)
            facts.ephemerals.append(added)
            facts.containers[container.name] = added
    for group in (new.init_containers, new.containers, new.ephemeral_containers):
        for container in group:
            record = facts.containers[container.name]
            changed_image = record.spec.image != container.image
            record.spec = container
            record.held = False
            if changed_image:
                facts.drop_image_work(record)
                record.work.again()
                record.crash_loop.reset()
                record.clear_waiting()
                record.retry_at = None
                if record.stage is Stage.RUNNING and record.role in (Role.MAIN, Role.SIDECAR):
                    facts.kill(record, changed(facts, record))
            elif record.stage is Stage.IDLE and record.waiting_reason == wording.CONFIG_ERROR:
                record.clear_waiting()
                record.retry_at = None


def changed(facts: SandboxFacts, record: ContainerRecord) -> Kill:
    """Because its image is another one now."""
    what = "Init container" if record.init else "Container"
    text = f"{what} {record.name} definition changed"
    return Kill(text if record.init else f"{text}, will be restarted", facts.grace, restart=True)
