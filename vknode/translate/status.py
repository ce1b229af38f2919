"""Sandbox → PodStatus, as a kubelet of 1.37 would write it.

The phase follows the sandbox's state and is monotonic: what the API server once had as
Succeeded or Failed stays.

| sandbox | phase |
|---|---|
| none yet, CREATING, STARTING | Pending |
| RUNNING | Pending while a main container or sidecar was never started, then Running |
| SUCCEEDED | Succeeded |
| FAILED | Failed |

**A lost sandbox.** When a pool no longer has the sandbox of a Pod that it once took (its
cell was replaced, its disk is gone), a kubelet in the same place would start everything
anew inside the same Pod. vknode does not: the writable volumes died with the cell, the
agent cannot count restarts that it did not see, and the cell may not be the best place
any more. The Pod becomes Failed with reason SandboxLost, its containers terminated with
exit code 137 and ContainerStatusUnknown in the kubelet's words, and the condition
DisruptionTarget, so that a Job's podFailurePolicy can tell it from a failure of the
program. A controller then makes a new Pod and the scheduler finds a place for it. A Pod
that never had a sandbox is not lost: it keeps waiting.

What others own in a status (conditions of other types, nominatedNodeName, resource claims,
…) is passed through as it is in the old status.
"""

from __future__ import annotations

from vknode.pool.v1 import status_pb2
from vknode.translate.conditions import conditions, disrupted
from vknode.translate.containerstatus import (
    entries,
    is_sidecar,
    lost_entry,
    terminate,
    waiting_entry,
    waiting_reason,
)
from vknode.translate.facts import Json, StatusFacts
from vknode.translate.qos import qos_class
from vknode.translate.resources import allocated_pod, pod_resources

TERMINAL = ("Succeeded", "Failed")

_PHASES = {
    status_pb2.SANDBOX_STATE_CREATING: "Pending",
    status_pb2.SANDBOX_STATE_STARTING: "Pending",
    status_pb2.SANDBOX_STATE_RUNNING: "Running",
    status_pb2.SANDBOX_STATE_SUCCEEDED: "Succeeded",
    status_pb2.SANDBOX_STATE_FAILED: "Failed",
}

# Keys of a status that this module decides; all others pass through.
_OWNED = frozenset(
    {
        "observedGeneration",
        "phase",
        "conditions",
        "message",
        "reason",
        "hostIP",
        "hostIPs",
        "podIP",
        "podIPs",
        "startTime",
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
        "qosClass",
        "allocatedResources",
        "resources",
    }
)
_LISTS = (
    ("initContainers", "initContainerStatuses"),
    ("containers", "containerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
)


def pod_status(
    pod: Json, sandbox: status_pb2.Sandbox | None, facts: StatusFacts, old: Json | None = None
) -> Json:
    """The status that the sandbox's state amounts to, JSON-ready and deterministic.

    `old` is the status last written, where the Pod's own (the default) may be older.
    Applied to its own result it changes nothing.
    """
    if old is None:
        old = pod.get("status") or {}
    if sandbox is None:
        return waiting_status(pod, facts, old=old)
    allocated = allocated_pod(pod, sandbox)
    spec = allocated["spec"]
    lists: dict[str, list[Json]] = {}
    for (kind, name), known in zip(
        _LISTS,
        (sandbox.init_containers, sandbox.containers, sandbox.ephemeral_containers),
        strict=True,
    ):
        lists[name] = entries(pod, spec.get(kind) or (), known, old.get(name) or (), kind)
    phase = _PHASES.get(sandbox.state, "Pending")
    if phase == "Running" and _never_started(spec, lists):
        phase = "Pending"
    # A pool that fell back behind what was reported (it started anew, say) changes no phase.
    if old.get("phase") in TERMINAL or (old.get("phase") == "Running" and phase == "Pending"):
        phase = old["phase"]
    reason, message = "", ""
    if phase == "Failed":
        reason, message = sandbox.reason, sandbox.message
    if phase == old.get("phase"):
        reason, message = reason or old.get("reason", ""), message or old.get("message", "")
    terminal = phase in TERMINAL
    if terminal:
        terminate(pod, lists)
    network = sandbox.network_ready and not terminal
    return _assemble(
        allocated,
        old,
        facts,
        phase=phase,
        reason=reason,
        message=message,
        generation=_generation(pod, sandbox.observed_generation, old),
        lists=lists,
        network=network,
        network_message=_network_message(sandbox),
        initialized=sandbox.initialized,
        pod_ips=list(sandbox.pod_ips[:2]),
        sandbox=sandbox,
    )


def _never_started(spec: Json, lists: dict[str, list[Json]]) -> bool:
    """Whether a main container or sidecar waits for its first instance: a kubelet calls a Pod
    Running only when each has had one (getPhase in kubelet_pods.go)."""
    sidecars = {one["name"] for one in spec.get("initContainers") or () if is_sidecar(one)}
    statuses = [
        *lists["containerStatuses"],
        *(one for one in lists["initContainerStatuses"] if one["name"] in sidecars),
    ]
    return any("waiting" in one["state"] and not one["lastState"] for one in statuses)


def waiting_status(
    pod: Json,
    facts: StatusFacts,
    reason: str = "ContainerCreating",
    message: str = "",
    old: Json | None = None,
) -> Json:
    """No sandbox yet: Pending, every container waiting.

    With the default reason containers wait as a kubelet shows it (PodInitializing where
    there are init containers); another reason, such as CreateContainerConfigError, is
    shown on all of them with its message. A Pod that has run already stays as it was:
    that its sandbox is not known at the moment says nothing (compare lost_status).
    """
    if old is None:
        old = pod.get("status") or {}
    if old.get("phase") in ("Running", *TERMINAL):
        return _ordered(old)
    spec = pod["spec"]
    if reason == "ContainerCreating":
        reason = waiting_reason(pod)
    lists = {
        name: [waiting_entry(one, kind, reason, message) for one in spec.get(kind) or ()]
        for kind, name in _LISTS
    }
    for name in ("containerStatuses", "ephemeralContainerStatuses"):
        lists[name].sort(key=lambda status: str(status["name"]))
    return _assemble(
        pod,
        old,
        facts,
        phase="Pending",
        reason=old.get("reason", "") if old.get("phase") == "Pending" else "",
        message=old.get("message", "") if old.get("phase") == "Pending" else "",
        generation=_generation(pod, 0, old),
        lists=lists,
        network=False,
        network_message="no pod sandbox exists",
        initialized=False,
        pod_ips=[],
    )


def ended_status(pod: Json, facts: StatusFacts, old: Json | None = None) -> Json:
    """The last status of a Pod that goes: Failed, where it has not ended otherwise.

    For one whose sandbox never was, or went without a last word: a kubelet as well lets no Pod
    go that is not terminal, and Jobs count on that (TerminatePod of its status manager).
    """
    if old is None:
        old = pod.get("status") or {}
    if old.get("phase") in TERMINAL:
        return _ordered(old)
    if old.get("phase") != "Running":
        old = waiting_status(pod, facts, old=old)
    lists = {name: list(old.get(name) or ()) for _, name in _LISTS}
    terminate(pod, lists)
    return _assemble(
        pod,
        old,
        facts,
        phase="Failed",
        reason=old.get("reason", ""),
        message=old.get("message", ""),
        generation=_generation(pod, 0, old),
        lists=lists,
        network=False,
        network_message="no pod sandbox exists",
        initialized=False,
        pod_ips=[],
    )


def rejected_status(
    pod: Json, reason: str, message: str, facts: StatusFacts, old: Json | None = None
) -> Json:
    """Phase Failed without any container, as a kubelet's admission leaves a Pod.

    Conditions that are there stay (a kubelet drops PodScheduled; nobody gains by that).
    """
    if old is None:
        old = pod.get("status") or {}
    result = {name: value for name, value in old.items() if name not in _OWNED}
    result.update(
        observedGeneration=_generation(pod, 0, old),
        phase="Failed",
        conditions=list(old.get("conditions") or ()),
        message=f"Pod was rejected: {message}",
        reason=reason,
        startTime=old.get("startTime") or facts.now,
        qosClass=qos_class(pod),
    )
    for name in ("hostIP", "hostIPs", *(status for _, status in _LISTS)):
        if old.get(name):
            result[name] = old[name]
    return _ordered(result)


def lost_status(
    pod: Json,
    facts: StatusFacts,
    reason: str = "SandboxLost",
    message: str = "The pool no longer has the sandbox of this Pod",
    old: Json | None = None,
) -> Json:
    """Phase Failed for a Pod whose sandbox is gone (see the top of this file).

    A Pod that was terminal already keeps its phase and reason.
    """
    if old is None:
        old = pod.get("status") or {}
    if old.get("phase") in TERMINAL:
        return _ordered(old)
    generation = _generation(pod, 0, old)
    lists: dict[str, list[Json]] = {}
    started = any(
        "waiting" not in status.get("state", {}) or status.get("lastState")
        for status in old.get("containerStatuses") or ()
    )
    for kind, name in _LISTS:
        known = old.get(name) or []
        lists[name] = [
            lost_entry(status)
            if started or (kind == "initContainers" and "running" in status.get("state", {}))
            else status
            for status in known
        ]
    was_initialized = any(
        one["type"] == "Initialized" and one.get("status") == "True"
        for one in old.get("conditions") or ()
    )
    result = _assemble(
        pod,
        old,
        facts,
        phase="Failed",
        reason=reason,
        message=message,
        generation=generation,
        lists=lists,
        network=False,
        network_message="no pod sandbox exists",
        initialized=was_initialized,
        pod_ips=[],
    )
    result["conditions"] = disrupted(
        result["conditions"], ("True", "TerminationByKubelet", message), generation, facts.now
    )
    return result


def _generation(pod: Json, observed: int, old: Json) -> int:
    """What has been acted on: the pool's word where there is one; it never falls.

    A deletion raises metadata.generation too, and the pool gets no new spec for it.
    """
    current = int(pod["metadata"].get("generation") or 0)
    if observed and not pod["metadata"].get("deletionTimestamp"):
        current = min(current, observed) if current else observed
    return max(current, int(old.get("observedGeneration") or 0))


def _network_message(sandbox: status_pb2.Sandbox) -> str:
    if sandbox.state == status_pb2.SANDBOX_STATE_CREATING:
        return "no pod sandbox exists"
    return "pod sandbox is not ready"


def _assemble(
    pod: Json,
    old: Json,
    facts: StatusFacts,
    *,
    phase: str,
    reason: str,
    message: str,
    generation: int,
    lists: dict[str, list[Json]],
    network: bool,
    network_message: str,
    initialized: bool,
    pod_ips: list[str],
    sandbox: status_pb2.Sandbox | None = None,
) -> Json:
    """`pod` is the one with the resources that are set aside."""
    result: Json = {name: value for name, value in old.items() if name not in _OWNED}
    if generation:
        result["observedGeneration"] = generation
    result["phase"] = phase
    result["conditions"] = conditions(
        pod,
        old.get("conditions") or (),
        phase=phase,
        generation=generation,
        now=facts.now,
        network=network,
        network_message=network_message,
        initialized=initialized,
        containers=lists["containerStatuses"],
        init_containers=lists["initContainerStatuses"],
        sandbox=sandbox,
    )
    if message:
        result["message"] = message
    if reason:
        result["reason"] = reason
    if facts.host_ips:
        result["hostIP"] = facts.host_ips[0]
        result["hostIPs"] = [{"ip": ip} for ip in facts.host_ips[:2]]
        if not pod_ips and pod["spec"].get("hostNetwork"):
            pod_ips = list(facts.host_ips[:2])
    # A Pod keeps the addresses that it had, as on a kubelet.
    ips = [{"ip": ip} for ip in pod_ips] or old.get("podIPs")
    if ips:
        result["podIP"] = ips[0]["ip"]
        result["podIPs"] = ips
    result["startTime"] = old.get("startTime") or facts.now
    for name, statuses in lists.items():
        if statuses:
            result[name] = statuses
    result["qosClass"] = qos_class(pod)
    result.update(pod_resources(pod, sandbox, running=phase == "Running"))
    return _ordered(result)


def _ordered(status: Json) -> Json:
    """Keys in one order, so that equal statuses are equal bytes."""
    return {name: status[name] for name in sorted(status)}
