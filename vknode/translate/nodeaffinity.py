"""Whether a Pod may be on a node: nodeSelector, required node affinity, NoExecute taints. Pure.

As component-helpers' scheduling/corev1 of 0.37: terms are alternatives, requirements in a term
all hold, a term without any matches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vknode.translate.facts import Json


@dataclass(frozen=True, slots=True)
class NodeView:
    """The part of a Node that admission looks at; taints as in the API. `strict_groups`: it keeps
    supplementalGroupsPolicy Strict; None where that is not known."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Json] = ()
    allocatable: Mapping[str, str] = field(default_factory=dict)
    strict_groups: bool | None = None


def matches_affinity(pod: Json, node: NodeView) -> bool:
    spec = pod["spec"]
    selector = spec.get("nodeSelector") or {}
    if any(node.labels.get(key) != value for key, value in selector.items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is None:
        return True
    fields = {"metadata.name": node.name}
    return any(_matches_term(term, node.labels, fields) for term in required["nodeSelectorTerms"])


def _matches_term(term: Json, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    expressions, by_field = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not by_field:
        return False
    return all(_holds(one, labels) for one in expressions) and all(
        _holds(one, fields) for one in by_field
    )


def _holds(requirement: Json, values: Mapping[str, str]) -> bool:
    value = values.get(requirement["key"])
    wanted = requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return value is not None and value in wanted
        case "NotIn":
            return value is None or value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return _compares(value, wanted, greater=requirement["operator"] == "Gt")
    return False


def _compares(value: str | None, wanted: Sequence[str], *, greater: bool) -> bool:
    try:
        there, bound = int(value or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return there > bound if greater else there < bound


def tolerates_no_execute(pod: Json, taints: Iterable[Json]) -> bool:
    """All taints that a kubelet looks at: those that evict."""
    tolerations = pod["spec"].get("tolerations") or ()
    return all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in taints
        if taint.get("effect") == "NoExecute"
    )


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    operator = toleration.get("operator") or "Equal"
    if operator == "Exists":
        return True
    return operator == "Equal" and (toleration.get("value") or "") == (taint.get("value") or "")
