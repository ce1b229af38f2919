"""The pool's ContainerStatus → PodStatus.containerStatuses, as a kubelet fills them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vknode.pool.v1 import status_pb2
from vknode.translate.containers import recursive_read_only
from vknode.translate.facts import Json, rfc3339
from vknode.translate.resources import container_resources

# kubecontainer.MaxPodTerminationMessageLogLength: for all containers of a Pod together.
_MESSAGE_BUDGET = 12 * 1024

# What a kubelet says of a container that is gone without a trace.
_UNKNOWN_REASON = "ContainerStatusUnknown"
_UNKNOWN_MESSAGE = "The container could not be located when the pod was terminated"
_UNKNOWN_EXIT_CODE = 137


def message_limit(pod: Json) -> int:
    """Bytes that one container's termination message may have."""
    spec = pod["spec"]
    count = sum(
        len(spec.get(kind) or ())
        for kind in ("containers", "initContainers", "ephemeralContainers")
    )
    return _MESSAGE_BUDGET // max(count, 1)


def waiting_reason(pod: Json) -> str:
    return "PodInitializing" if pod["spec"].get("initContainers") else "ContainerCreating"


def is_sidecar(container: Json) -> bool:
    """Only meaningful for an init container."""
    return container.get("restartPolicy") == "Always"


def entries(
    pod: Json,
    containers: Sequence[Json],
    known: Sequence[status_pb2.ContainerStatus],
    old: Sequence[Json],
    kind: str,
) -> list[Json]:
    """Statuses for all `containers`: of what the pool tells, else of what was said before.

    `kind` is "containers", "initContainers" or "ephemeralContainers". Init containers
    keep the order of the spec, the others are sorted by name, as a kubelet sorts them.
    """
    if not containers:
        return []
    by_name = {status.name: status for status in known}
    old_by_name = {status["name"]: status for status in old}
    limit = message_limit(pod)
    default_reason = waiting_reason(pod)
    found = [
        _entry(
            container,
            by_name.get(container["name"]),
            old_by_name.get(container["name"]),
            kind,
            limit,
            default_reason,
        )
        for container in containers
    ]
    if kind != "initContainers":
        found.sort(key=_name)
    return found


def _name(status: Json) -> str:
    name: str = status["name"]
    return name


def _entry(
    container: Json,
    status: status_pb2.ContainerStatus | None,
    old: Json | None,
    kind: str,
    limit: int,
    default_reason: str,
) -> Json:
    if status is None:
        if old is not None and "terminated" in old.get("state", {}):
            # It has ended and nothing newer is known.
            return old
        result = waiting_entry(container, kind, default_reason, "")
        if old is not None:
            result["restartCount"] = old.get("restartCount", 0)
            result["lastState"] = old.get("lastState") or {}
        return result
    started, ready = _started_and_ready(container, status, kind)
    result = {
        "name": status.name,
        "state": _state(status.state, limit, default_reason),
        "lastState": _state(status.last_termination, limit, "")
        if status.HasField("last_termination")
        else {},
        "ready": ready,
        "restartCount": status.restart_count,
        "image": status.image or container.get("image", ""),
        "imageID": status.image_id,
    }
    if status.container_id:
        result["containerID"] = status.container_id
        allocated, result["resources"] = container_resources(container, status)
        if allocated:
            result["allocatedResources"] = allocated
    if kind != "ephemeralContainers":
        result["started"] = started
    mounts = _volume_mounts(container)
    if mounts:
        result["volumeMounts"] = mounts
    if status.HasField("user"):
        user: Json = {"uid": status.user.uid, "gid": status.user.gid}
        if status.user.supplemental_groups:
            user["supplementalGroups"] = list(status.user.supplemental_groups)
        result["user"] = {"linux": user}
    return result


def waiting_entry(container: Json, kind: str, reason: str, message: str) -> Json:
    """A container that has never been created."""
    waiting = {"reason": reason}
    if message:
        waiting["message"] = message
    result: Json = {
        "name": container["name"],
        "state": {"waiting": waiting},
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": container.get("image", ""),
        "imageID": "",
    }
    if kind != "ephemeralContainers":
        result["started"] = False
    mounts = _volume_mounts(container)
    if mounts:
        result["volumeMounts"] = mounts
    return result


def lost_entry(status: Json) -> Json:
    """What remains of a container whose sandbox is gone without a last word."""
    if "terminated" in status.get("state", {}):
        return {**status, "ready": False} if not _init_success(status) else status
    ended: Json = {
        "exitCode": _UNKNOWN_EXIT_CODE,
        "reason": _UNKNOWN_REASON,
        "message": _UNKNOWN_MESSAGE,
        "startedAt": None,
        "finishedAt": None,
    }
    result = {**status, "state": {"terminated": ended}, "ready": False}
    if "started" in result:
        result["started"] = False
    return result


def _init_success(status: Json) -> bool:
    return bool(status.get("ready")) and status["state"]["terminated"].get("exitCode") == 0


def _started_and_ready(
    container: Json, status: status_pb2.ContainerStatus, kind: str
) -> tuple[bool, bool]:
    """The rules of the kubelet's prober manager, over what the pool says."""
    state = status.state.WhichOneof("state")
    if kind == "ephemeralContainers":
        return False, False
    running = state == "running"
    started = running and status.started
    if kind == "initContainers" and not is_sidecar(container):
        return started, state == "terminated" and status.state.terminated.exit_code == 0
    return started, started and status.ready


def _state(state: status_pb2.ContainerState, limit: int, default_reason: str) -> Json:
    match state.WhichOneof("state"):
        case "running":
            return {"running": {"startedAt": _time(state.running, "started_at")}}
        case "terminated":
            return {"terminated": _terminated(state.terminated, limit)}
        case "waiting":
            reason = state.waiting.reason or default_reason
            waiting = {"reason": reason} if reason else {}
            if state.waiting.message:
                waiting["message"] = state.waiting.message
            return {"waiting": waiting}
    return {"waiting": {"reason": default_reason}} if default_reason else {}


def _terminated(ended: status_pb2.Terminated, limit: int) -> Json:
    result: Json = {"exitCode": ended.exit_code}
    if ended.signal:
        result["signal"] = ended.signal
    if ended.reason:
        result["reason"] = ended.reason
    if ended.message:
        result["message"] = _cut(ended.message, limit)
    result["startedAt"] = _time(ended, "started_at")
    result["finishedAt"] = _time(ended, "finished_at")
    if ended.container_id:
        result["containerID"] = ended.container_id
    return result


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, no half characters."""
    if len(text) * 4 <= limit:
        return text
    data = text.encode()
    return text if len(data) <= limit else data[:limit].decode(errors="ignore")


def _time(message: Any, name: str) -> str | None:
    """None is how the API writes a time that is not known."""
    return rfc3339(getattr(message, name).seconds) if message.HasField(name) else None


def _volume_mounts(container: Json) -> list[Json]:
    found = []
    for mount in container.get("volumeMounts") or ():
        entry: Json = {"name": mount["name"], "mountPath": mount["mountPath"]}
        if mount.get("readOnly"):
            entry["readOnly"] = True
            entry["recursiveReadOnly"] = "Enabled" if recursive_read_only(mount) else "Disabled"
        found.append(entry)
    return found


def terminate(pod: Json, lists: dict[str, list[Json]]) -> None:
    """Of a Pod that has ended nothing may run or wait any more: what nobody knows the end of
    counts as failed (TerminatePod of a kubelet's status manager).

    Main containers stay as they are where initialization never came to its end; of the init
    containers those that follow the last one which was ever started.
    """
    inits = lists["initContainerStatuses"]
    if _has_initialized(pod, inits, lists["containerStatuses"]):
        lists["containerStatuses"] = [_ended(one) for one in lists["containerStatuses"]]
    begun = 1
    for index, status in enumerate(inits):
        if _was_started(status):
            begun = index + 1
    lists["initContainerStatuses"] = [*map(_ended, inits[:begun]), *inits[begun:]]


def _was_started(status: Json) -> bool:
    return "waiting" not in status.get("state", {}) or "terminated" in (
        status.get("lastState") or {}
    )


def _has_initialized(pod: Json, inits: list[Json], containers: list[Json]) -> bool:
    declared = pod["spec"].get("initContainers") or []
    if not declared or any(map(_was_started, containers)):
        return True
    if len(inits) < len(declared):
        return False
    last = inits[-1]
    if is_sidecar(declared[-1]):
        return "running" in last.get("state", {}) and bool(last.get("started"))
    ends = (
        last.get("state", {}).get("terminated"),
        (last.get("lastState") or {}).get("terminated"),
    )
    return any(end is not None and end.get("exitCode") == 0 for end in ends)


def _ended(status: Json) -> Json:
    return status if "terminated" in status.get("state", {}) else lost_entry(status)
