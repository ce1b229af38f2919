"""Pod conditions as a kubelet generates them (pkg/kubelet/status/generate.go).

| condition | True when |
|---|---|
| PodReadyToStartContainers | the sandbox and its network exist |
| Initialized | there are no init containers, or they have done their work once |
| ContainersReady | every container and sidecar is ready; never in a terminal phase |
| Ready | ContainersReady, and every readiness gate's condition is True |
| PodScheduled | always: a Pod without a node never comes here |

A condition of any other type belongs to somebody else and is passed through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

from vknode.translate.containerstatus import is_sidecar
from vknode.translate.facts import Json

OWNED = (
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
)

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
) -> list[Json]:
    """The whole list: others' conditions first, in their order, then our own."""
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
    for name in OWNED:
        result.append(condition(name, verdicts[name], by_type.get(name), generation, now))
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
