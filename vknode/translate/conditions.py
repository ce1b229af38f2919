"""Pod conditions as a kubelet generates them (pkg/kubelet/status/generate.go).

| condition | True when |
|---|---|
| PodReadyToStartContainers | the sandbox and its network exist |
| Initialized | there are no init containers, or they have done their work once |
| ContainersReady | every container and sidecar is ready; never in a terminal phase |
| Ready | ContainersReady, and every readiness gate's condition is True |
| PodScheduled | always: a Pod without a node never comes here |
| AllContainersRestarting | the pool restarts all; only where a rule may ask for that |
| PodResizePending | a change of resources has to wait, or can never be done |
| PodResizeInProgress | a change of resources is being carried out |
| DisruptionTarget | the pool ended the Pod for the cell's sake, not for its own |

A condition of any other type belongs to somebody else and is passed through untouched. So does
DisruptionTarget, which others set as well: the earliest cause stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from vknode.pool.v1 import status_pb2
from vknode.translate.containerstatus import is_sidecar
from vknode.translate.facts import Json

_ALWAYS = (
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
)
_PENDING, _IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
_RESTARTING = "AllContainersRestarting"
_DISRUPTION = "DisruptionTarget"
OWNED = (*_ALWAYS, _PENDING, _IN_PROGRESS, _RESTARTING)

# Reasons with which a kubelet ends a Pod for its node's sake. Evicted is also what a Pod gets that
# used more than its own limits allow; that is its own fault, and no disruption.
_FOR_THE_NODE = ("Evicted", "Preempting", "Terminated", "NodeShutdown")
_OWN_FAULT = ("exceed",)

# status, reason, message
_Verdict = tuple[str, str, str]
_TRUE: _Verdict = ("True", "", "")


def conditions(
    pod: Json,
    old: Sequence[Json],
    *,
    phase: str,
    generation: int,
    now: str,
    network: bool,
    network_message: str,
    initialized: bool,
    containers: Sequence[Json],
    init_containers: Sequence[Json],
    sandbox: status_pb2.Sandbox | None = None,
) -> list[Json]:
    """The whole list: others' conditions first, in their order, then our own."""
    terminal = phase in ("Succeeded", "Failed")
    by_type = {condition["type"]: condition for condition in old}
    result = [condition for condition in old if condition["type"] not in OWNED]
    was = by_type.get("Initialized")
    # Once true it stays true: sidecars that restart do not undo it.
    initialized = initialized or (was is not None and was.get("status") == "True")
    all_ready = _containers_ready(pod, phase, containers, init_containers)
    verdicts: dict[str, _Verdict] = {
        "PodReadyToStartContainers": (
            _TRUE if network else ("False", "PodSandboxNotReady", network_message)
        ),
        "Initialized": _initialized(pod, phase, init_containers, initialized),
        "Ready": all_ready if all_ready[0] != "True" else _gates(pod, by_type),
        "ContainersReady": all_ready,
        "PodScheduled": _TRUE,
    }
    if sandbox is not None and not terminal:
        result.extend(_resize(sandbox, by_type, now))
    if phase == "Failed" and sandbox is not None and _is_disruption(sandbox):
        verdict = ("True", "TerminationByKubelet", sandbox.message)
        result = disrupted(result, verdict, generation, now)
    for name in _ALWAYS:
        result.append(condition(name, verdicts[name], by_type.get(name), generation, now))
    if _may_restart_all(pod):
        restarting = sandbox is not None and sandbox.restarting_all and not terminal
        result.append(
            condition(
                _RESTARTING, _all_restarting(phase, restarting), by_type.get(_RESTARTING), 0, now
            )
        )
    return result


def disrupted(entries: list[Json], verdict: _Verdict, generation: int, now: str) -> list[Json]:
    """With the condition DisruptionTarget. Somebody else's, where it holds, is the earlier cause
    and stays."""
    before = next((one for one in entries if one["type"] == _DISRUPTION), None)
    if before is not None and before.get("status") == "True":
        return entries
    others = [one for one in entries if one["type"] != _DISRUPTION]
    return [*others, condition(_DISRUPTION, verdict, before, generation, now)]


def _is_disruption(sandbox: status_pb2.Sandbox) -> bool:
    return sandbox.reason in _FOR_THE_NODE and not any(
        word in sandbox.message for word in _OWN_FAULT
    )


def _may_restart_all(pod: Json) -> bool:
    spec = pod["spec"]
    return any(
        rule.get("action") == "RestartAllContainers"
        for container in (*(spec.get("initContainers") or ()), *spec["containers"])
        for rule in container.get("restartPolicyRules") or ()
    )


def _all_restarting(phase: str, restarting: bool) -> _Verdict:
    if phase == "Succeeded":
        return ("False", "PodCompleted", "")
    if phase == "Failed":
        return ("False", "PodFailed", "")
    if restarting:
        return ("True", "RestartAllContainersStarted", "container exited with restart policy rule")
    return ("False", "", "")


def _resize(sandbox: status_pb2.Sandbox, by_type: dict[str, Json], now: str) -> list[Json]:
    """What a kubelet's status manager keeps of a change of resources."""
    if not sandbox.HasField("resize"):
        return []
    resize = sandbox.resize
    found = []
    if resize.pending_reason:
        # Whatever else keeps it from beginning, a kubelet says Deferred.
        reason = "Infeasible" if resize.pending_reason == "Infeasible" else "Deferred"
        found.append((_PENDING, reason, resize.pending_message, resize.pending_generation))
    if resize.in_progress:
        reason = "Error" if resize.error else ""
        found.append((_IN_PROGRESS, reason, resize.error, resize.in_progress_generation))
    return [_resize_condition(by_type.get(one[0]), *one, now) for one in found]


def _resize_condition(
    old: Json | None, name: str, reason: str, message: str, generation: int, now: str
) -> Json:
    """Here the time of the transition moves with the reason, and that of the probe with all."""
    result = condition(name, ("True", reason, message), old, generation, now)
    if old is not None and old.get("reason", "") != reason:
        result["lastTransitionTime"] = now
    result["lastProbeTime"] = now
    if old is not None and old.get("lastProbeTime"):
        same = all(
            old.get(key) == result.get(key) for key in ("reason", "message", "observedGeneration")
        )
        if same:
            result["lastProbeTime"] = old["lastProbeTime"]
    return result


def condition(name: str, verdict: _Verdict, old: Json | None, generation: int, now: str) -> Json:
    """One condition; lastTransitionTime moves only when the status does."""
    status, reason, message = verdict
    since = now
    if old is not None and old.get("status") == status and old.get("lastTransitionTime"):
        since = old["lastTransitionTime"]
    result: Json = {"type": name}
    if generation:
        result["observedGeneration"] = generation
    result["status"] = status
    result["lastProbeTime"] = None
    result["lastTransitionTime"] = since
    if reason:
        result["reason"] = reason
    if message:
        result["message"] = message
    return result


def _containers_ready(
    pod: Json, phase: str, containers: Sequence[Json], init_containers: Sequence[Json]
) -> _Verdict:
    if phase == "Succeeded":
        return ("False", "PodCompleted", "")
    if phase == "Failed":
        return ("False", "PodFailed", "")
    ready = {status["name"]: status["ready"] for status in (*init_containers, *containers)}
    spec = pod["spec"]
    unready = [
        container["name"]
        for container in (
            *(one for one in spec.get("initContainers") or () if is_sidecar(one)),
            *spec["containers"],
        )
        if not ready.get(container["name"])
    ]
    if unready:
        text = f"containers with unready status: [{' '.join(unready)}]"
        return ("False", "ContainersNotReady", text)
    return _TRUE


def _gates(pod: Json, by_type: dict[str, Json]) -> _Verdict:
    messages = []
    for gate in pod["spec"].get("readinessGates") or ():
        name = gate["conditionType"]
        known = by_type.get(name)
        if known is None:
            messages.append(
                f'corresponding condition of pod readiness gate "{name}" does not exist.'
            )
        elif known.get("status") != "True":
            messages.append(
                f'the status of pod readiness gate "{name}" is not "True", but '
                f"{known.get('status')}"
            )
    if messages:
        return ("False", "ReadinessGatesNotReady", ", ".join(messages))
    return _TRUE


def _initialized(
    pod: Json, phase: str, init_containers: Sequence[Json], initialized: bool
) -> _Verdict:
    if phase == "Succeeded":
        return ("True", "PodCompleted", "")
    if initialized or not pod["spec"].get("initContainers"):
        return _TRUE
    by_name = {status["name"]: status for status in init_containers}
    incomplete = []
    for container in pod["spec"]["initContainers"]:
        status = by_name.get(container["name"], {})
        done = status.get("started") if is_sidecar(container) else status.get("ready")
        if not done:
            incomplete.append(container["name"])
    if not incomplete:
        return _TRUE
    text = f"containers with incomplete status: [{' '.join(incomplete)}]"
    return ("False", "ContainersNotInitialized", text)
