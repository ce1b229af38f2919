"""A machine's memory as the contract's Sandbox."""

from __future__ import annotations

from vknode.pool.engine.container_status import container_status
from vknode.pool.engine.facts import SandboxFacts, SandboxStage
from vknode.pool.v1 import status_pb2


def build(facts: SandboxFacts) -> status_pb2.Sandbox:
    spec = facts.spec
    out = status_pb2.Sandbox(
        uid=spec.uid,
        namespace=spec.namespace,
        name=spec.name,
        cell=spec.cell,
        tenant=spec.tenant,
        state=facts.state,
        reason=facts.trouble[0],
        message=facts.trouble[1],
        pod_ips=facts.pod_ips,
        observed_generation=spec.generation,
        deleting=facts.deleting,
        network_ready=facts.stage is SandboxStage.READY and not facts.terminal,
        initialized=facts.initialized,
        owner=facts.persisted.owner,
        restarting_all=facts.restarting_all,
    )
    out.created_at.FromNanoseconds(facts.persisted.created_at)
    phases = out.phases
    phases.asked.FromNanoseconds(facts.persisted.created_at)
    if facts.images_ready_at:
        phases.images_ready.FromNanoseconds(facts.images_ready_at)
    if facts.sandbox_ready_at:
        phases.sandbox_ready.FromNanoseconds(facts.sandbox_ready_at)
    if facts.first_started_at:
        phases.first_container_started.FromNanoseconds(facts.first_started_at)
    if facts.all_started_at:
        phases.containers_started.FromNanoseconds(facts.all_started_at)
    for records, into in (
        (facts.inits, out.init_containers),
        (facts.mains, out.containers),
        (facts.ephemerals, out.ephemeral_containers),
    ):
        into.extend(
            container_status(
                record,
                spec,
                facts.scheme,
                reached=facts.reached(record),
                initialized=facts.initialized,
                ending=facts.deleting or facts.terminal,
            )
            for record in records
        )
    _add_resize(facts, out)
    return out


def _add_resize(facts: SandboxFacts, out: status_pb2.Sandbox) -> None:
    if facts.spec.HasField("resources"):
        out.allocated.CopyFrom(facts.spec.resources)
        out.resources.CopyFrom(facts.in_force or facts.spec.resources)
    reason, message = facts.pending
    if reason:
        out.resize.pending_reason, out.resize.pending_message = reason, message
        out.resize.pending_generation = facts.pending_generation
    if facts.resizing and not facts.terminal:
        out.resize.in_progress = True
        out.resize.in_progress_generation = facts.resizing_generation
        if facts.resize_error is not None:
            out.resize.error = facts.resize_error.message
