"""Resources in a status: what is set aside, and what is in force. Pure.

While a resize waits or is carried out three amounts differ: what the spec asks for, what the pool
has set aside (`allocated`) and what its containers run with (`resources`). A kubelet builds the
whole status from the Pod *as allocated* (convertToAPIContainerStatuses and
convertToAPIPodLevelResourcesStatus in kubelet_pods.go), and so it is done here. Where a pool tells
nothing, the spec counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vknode.pool.v1 import spec_pb2, status_pb2
from vknode.translate.facts import Json
from vknode.translate.qos import pod_limits, pod_requests
from vknode.translate.quantity import Quantity

# What can be changed while a container runs.
_RESIZABLE = ("cpu", "memory")
# Below these amounts of CPU (milli) the kernel cannot tell one from the other: 2 shares, and a
# quota of 1 ms in 100 ms. What was asked for is shown then.
_LEAST_MILLI_CPU = {"requests": 2, "limits": 10}


def allocated_pod(pod: Json, sandbox: status_pb2.Sandbox | None) -> Json:
    """The Pod with the resources that are set aside for it; the Pod itself where they are its."""
    if sandbox is None:
        return pod
    spec = dict(pod["spec"])
    changed = False
    for kind, statuses in (
        ("initContainers", sandbox.init_containers),
        ("containers", sandbox.containers),
        ("ephemeralContainers", sandbox.ephemeral_containers),
    ):
        given = {one.name: one.allocated for one in statuses if one.HasField("allocated")}
        if given and spec.get(kind):
            spec[kind] = [_with(one, given.get(one["name"])) for one in spec[kind]]
            changed = True
    if sandbox.HasField("allocated") and spec.get("resources"):
        spec = _with(spec, sandbox.allocated)
        changed = True
    return {**pod, "spec": spec} if changed else pod


def _with(owner: Json, given: spec_pb2.Resources | None) -> Json:
    if given is None:
        return owner
    resources = dict(owner.get("resources") or {})
    for name, amounts in (("requests", given.requests), ("limits", given.limits)):
        asked = resources.get(name) or {}
        fixed = {key: amount for key, amount in asked.items() if key not in _RESIZABLE}
        resources[name] = {**fixed, **_worded(dict(amounts), asked)}
    return {**owner, "resources": resources}


def container_resources(container: Json, status: status_pb2.ContainerStatus) -> tuple[Any, Json]:
    """`allocatedResources` (None for none) and `resources` of a status; the container is that of
    the allocated Pod."""
    allocated = container.get("resources") or {}
    running = status.state.WhichOneof("state") == "running"
    actual = status.resources if running and status.HasField("resources") else None
    resources: Json = {}
    for name in ("limits", "requests"):
        amounts = allocated.get(name)
        if amounts:
            resources[name] = _in_force(amounts, actual, name)
    if allocated.get("claims"):
        resources["claims"] = allocated["claims"]
    return allocated.get("requests"), resources


def pod_resources(pod: Json, sandbox: status_pb2.Sandbox | None, *, running: bool) -> Json:
    """`allocatedResources` and `resources` of the whole status; `pod` is the allocated one."""
    requests, limits = pod_requests(pod), pod_limits(pod)
    result: Json = {}
    if requests:
        result["allocatedResources"] = requests
    actual = sandbox.resources if sandbox is not None and sandbox.HasField("resources") else None
    if not running:
        actual = None
    resources = {
        name: _in_force(amounts, actual, name)
        for name, amounts in (("limits", limits), ("requests", requests))
        if amounts
    }
    result["resources"] = resources
    return result


def _in_force(
    wanted: Mapping[str, str], actual: spec_pb2.Resources | None, name: str
) -> dict[str, str]:
    """What is wanted, with what the pool says of cpu and memory."""
    if actual is None:
        return dict(wanted)
    known = actual.limits if name == "limits" else actual.requests
    told = {one: known[one] for one in _RESIZABLE if one in known and one in wanted}
    if "cpu" in told and _too_small(told["cpu"], wanted["cpu"], _LEAST_MILLI_CPU[name]):
        del told["cpu"]
    return {**wanted, **_worded(told, wanted)}


def _too_small(actual: str, wanted: str, least: int) -> bool:
    amounts: Iterable[Quantity] = (Quantity.parse(actual), Quantity.parse(str(wanted)))
    return all(one.milli_value() <= least for one in amounts)


def _worded(told: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """The same amounts in the words of those who asked, so that nothing seems to change."""
    return {
        name: asked[name]
        if name in asked and Quantity.parse(str(asked[name])) == Quantity.parse(text)
        else text
        for name, text in told.items()
    }
