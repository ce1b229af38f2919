"""How what is known of one container reads as the contract's ContainerStatus."""

from __future__ import annotations

from vknode.pool.engine import wording
from vknode.pool.engine.container import ContainerRecord, Ended, Role, Stage
from vknode.pool.runtimes.facts import ContainerRef
from vknode.pool.v1 import spec_pb2, status_pb2


def container_status(
    record: ContainerRecord,
    spec: spec_pb2.SandboxSpec,
    scheme: str,
    *,
    reached: bool,
    initialized: bool,
    ending: bool,
) -> status_pb2.ContainerStatus:
    """`reached`: its turn has come, so that its own trouble is worth telling. `ending`: nothing
    of the sandbox is started any more."""
    out = status_pb2.ContainerStatus(name=record.name)
    image = record.image
    if image is not None and (record.running or record.ended is not None):
        out.image, out.image_id = image.reference, image.id
    else:
        out.image = record.spec.image
    _add_resources(out, record)
    if record.running and record.ref is not None:
        out.container_id = _id(record.ref, scheme)
        out.restart_count = record.attempt
        out.state.running.started_at.FromNanoseconds(record.started_at)
        out.started, out.ready = record.started, record.ready
        if record.ended is not None:
            _terminated(out.last_termination, record.ended, scheme)
        if record.user is not None:
            uid, gid, groups = record.user
            out.user.uid, out.user.gid = uid, gid
            out.user.supplemental_groups.extend(groups)
        return out
    reason, message = _waiting(record, reached)
    if record.ended is not None:
        # What will not run again waits for nothing: its end is what there is to tell.
        if ending or (record.stage is Stage.EXITED and not record.restart_wanted(spec)):
            reason = message = ""
        _ended(out, record, scheme, reason, message)
    elif record.role is Role.INIT and initialized and record.stage is not Stage.RUNNING:
        # Its instance was collected while the pool was away; see wording's source.
        out.state.terminated.reason = "Completed"
        out.state.terminated.message = wording.INIT_UNKNOWN_MESSAGE
        out.ready = True
    else:
        out.state.waiting.reason = reason or (
            wording.POD_INITIALIZING if spec.init_containers else wording.CONTAINER_CREATING
        )
        out.state.waiting.message = message
    return out


def _ended(
    out: status_pb2.ContainerStatus,
    record: ContainerRecord,
    scheme: str,
    reason: str,
    message: str,
) -> None:
    assert record.ended is not None
    out.container_id = _id(record.ended.ref, scheme)
    out.restart_count = record.ended.attempt
    if reason:
        out.state.waiting.reason, out.state.waiting.message = reason, message
        _terminated(out.last_termination, record.ended, scheme)
        return
    _terminated(out.state, record.ended, scheme)
    if record.ended_before is not None:
        _terminated(out.last_termination, record.ended_before, scheme)
    # An init container that has done its work counts as ready.
    out.ready = record.role is Role.INIT and record.succeeded


def _add_resources(out: status_pb2.ContainerStatus, record: ContainerRecord) -> None:
    if record.running and record.in_force is not None:
        if record.in_force.requests or record.in_force.limits:
            out.resources.CopyFrom(record.in_force)
    elif record.spec.HasField("resources"):
        out.resources.CopyFrom(record.spec.resources)
    if record.spec.HasField("resources"):
        out.allocated.CopyFrom(record.spec.resources)


def _waiting(record: ContainerRecord, reached: bool) -> tuple[str, str]:
    if record.waiting_reason:
        return record.waiting_reason, record.waiting_message
    if not reached or record.stage is not Stage.IDLE:
        return "", ""
    if record.spec.config_error:
        return wording.CONFIG_ERROR, record.spec.config_error
    return record.work.reason, record.work.message


def _id(ref: ContainerRef | None, scheme: str) -> str:
    return f"{scheme}://{ref.id}" if ref is not None else ""


def _terminated(into: status_pb2.ContainerState, ended: Ended, scheme: str) -> None:
    end = ended.exit
    state = into.terminated
    state.exit_code = end.exit_code
    state.signal = end.signal
    state.reason = end.reason
    state.message = end.message
    state.container_id = _id(ended.ref, scheme)
    if end.started_at:
        state.started_at.FromNanoseconds(end.started_at)
    if end.finished_at:
        state.finished_at.FromNanoseconds(end.finished_at)
