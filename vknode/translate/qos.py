"""QoS class and whole-Pod resources, as k8s.io/component-helpers and the kubelet add them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vknode.translate.facts import Json
from vknode.translate.quantity import Quantity, add_lists, format_list, max_lists, parse_list

_QOS_RESOURCES = ("cpu", "memory")


def qos_class(pod: Json) -> str:
    """The class in the status where there is one (it never changes), else computed."""
    return pod.get("status", {}).get("qosClass") or compute_qos_class(pod)


def compute_qos_class(pod: Json) -> str:
    spec = pod["spec"]
    if _pod_level(spec, "requests") or _pod_level(spec, "limits"):
        return _class_of(spec["resources"])
    classes = {
        _class_of(container.get("resources") or {})
        for container in (*spec.get("initContainers", ()), *spec["containers"])
    }
    return classes.pop() if len(classes) == 1 else "Burstable"


def _class_of(resources: Json) -> str:
    requests = _positive(resources.get("requests"))
    limits = _positive(resources.get("limits"))
    if not requests and not limits:
        return "BestEffort"
    if len(limits) == len(_QOS_RESOURCES) and requests == limits:
        return "Guaranteed"
    return "Burstable"


def _positive(resources: Mapping[str, str] | None) -> dict[str, Quantity]:
    if not resources:
        return {}
    found = {}
    for name in _QOS_RESOURCES:
        if name in resources:
            amount = Quantity.parse(str(resources[name]))
            if amount.nano > 0:
                found[name] = amount
    return found


def _pod_level(spec: Json, kind: str) -> dict[str, str]:
    resources = (spec.get("resources") or {}).get(kind) or {}
    return {
        name: amount
        for name, amount in resources.items()
        if name in _QOS_RESOURCES or name.startswith("hugepages-")
    }


def pod_requests(pod: Json) -> dict[str, str]:
    """What the whole Pod asks for: containers, init phases, Pod level and overhead."""
    return format_list(_whole(pod["spec"], "requests"))


def pod_limits(pod: Json) -> dict[str, str]:
    return format_list(_whole(pod["spec"], "limits"))


def _whole(spec: Json, kind: Literal["requests", "limits"]) -> dict[str, Quantity]:
    lists = [
        parse_list((container.get("resources") or {}).get(kind)) for container in spec["containers"]
    ]
    total = add_lists(lists)
    # Sidecars run beside everything that comes after them; an ordinary init container
    # beside the sidecars started before it.
    sidecars: dict[str, Quantity] = {}
    peak: dict[str, Quantity] = {}
    for container in spec.get("initContainers", ()):
        own = parse_list((container.get("resources") or {}).get(kind))
        if container.get("restartPolicy") == "Always":
            total = add_lists((total, own))
            sidecars = add_lists((sidecars, own))
            own = sidecars
        else:
            own = add_lists((own, sidecars))
        peak = max_lists(peak, own)
    total = max_lists(total, peak)
    total.update(parse_list(_pod_level(spec, kind)))
    overhead = parse_list(spec.get("overhead"))
    if kind == "limits":
        overhead = {name: amount for name, amount in overhead.items() if total.get(name)}
    return add_lists((total, overhead))
