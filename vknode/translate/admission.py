"""Whether a node takes a Pod, in a kubelet's order and words. Pure.

A Pod that the scheduler has placed fits. One that names its node itself (spec.nodeName, a
DaemonSet of old, a race of two schedulers) need not: a kubelet then fails it at once, and so do we
(pkg/kubelet/lifecycle/predicate.go, pkg/kubelet/sysctl of 1.37). Other than a kubelet, which lets
pass an extended resource that the node does not have at all, this counts it as missing: there is no
device that could serve it.

What a kubelet asks of its own machine (AppArmor, sysctls that its administrator allows) is asked of
the configuration (`privileges.py`) and of the pool instead, by CreateSandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vknode.translate.facts import Json
from vknode.translate.nodeaffinity import NodeView, matches_affinity, tolerates_no_execute
from vknode.translate.qos import pod_requests
from vknode.translate.quantity import Quantity
from vknode.translate.security import normal_sysctl

_NATIVE = ("cpu", "memory", "ephemeral-storage")
_OS_LABEL = "kubernetes.io/os"
_OS = "linux"

# Sysctls that belong to a namespace which a Pod may share with its host.
_HOST_NAMESPACES = (
    ("hostNetwork", "net", ("net.",)),
    ("hostIPC", "ipc", ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")),
)

SYSCTL_FORBIDDEN = "SysctlForbidden"


class Refused(NamedTuple):
    """The Pod fails with this reason; `message` is the kubelet's. `by_labels`: only the node's
    labels are against it, and they may have changed a moment ago."""

    reason: str
    message: str
    by_labels: bool = False


class Port(NamedTuple):
    """A port of the host; `ip` 0.0.0.0 is every address."""

    ip: str
    protocol: str
    port: int


class Load(NamedTuple):
    """What one Pod takes of a node: milli CPU, bytes, and numbers of other resources."""

    milli_cpu: int = 0
    memory: int = 0
    storage: int = 0
    others: tuple[tuple[str, int], ...] = ()
    ports: tuple[Port, ...] = ()


class Used(NamedTuple):
    """What the Pods of a node take together."""

    pods: int
    milli_cpu: int
    memory: int
    storage: int
    others: Mapping[str, int]
    ports: Mapping[Port, int]


def load_of(pod: Json) -> Load:
    """Of the Pod with the resources that are set aside for it."""
    requests = {name: Quantity.parse(text) for name, text in pod_requests(pod).items()}
    zero = Quantity(0)
    return Load(
        requests.get("cpu", zero).milli_value(),
        requests.get("memory", zero).value(),
        requests.get("ephemeral-storage", zero).value(),
        tuple((name, amount.value()) for name, amount in requests.items() if name not in _NATIVE),
        tuple(_host_ports(pod)),
    )


def admit(pod: Json, load: Load, used: Used, node: NodeView) -> Refused | None:
    """None: the node takes it."""
    checks: tuple[Callable[[], Refused | None], ...] = (
        lambda: _sysctls(pod),
        lambda: _operating_system(pod),
        lambda: _groups_policy(pod, node),
        lambda: next(_insufficient(load, used, node), None),
        lambda: _predicates(pod, load, used, node),
    )
    for check in checks:
        refused = check()
        if refused is not None:
            return refused
    return None


def _sysctls(pod: Json) -> Refused | None:
    spec = pod["spec"]
    for entry in (spec.get("securityContext") or {}).get("sysctls") or ():
        name = normal_sysctl(entry["name"])
        for shares, namespace, prefixes in _HOST_NAMESPACES:
            if spec.get(shares) and name.startswith(prefixes):
                problem = f'"{name}" not allowed with host {namespace} enabled'
                return Refused(SYSCTL_FORBIDDEN, f"forbidden sysctl: {problem}")
    return None


def _operating_system(pod: Json) -> Refused | None:
    label = (pod["metadata"].get("labels") or {}).get(_OS_LABEL)
    if label is not None and label != _OS:
        return Refused(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        )
    if (pod["spec"].get("os") or {}).get("name", _OS) != _OS:
        return Refused(
            "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"
        )
    return None


def _groups_policy(pod: Json, node: NodeView) -> Refused | None:
    policy = (pod["spec"].get("securityContext") or {}).get("supplementalGroupsPolicy")
    if policy == "Strict" and node.strict_groups is False:
        return Refused(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        )
    return None


def _insufficient(load: Load, used: Used, node: NodeView) -> Iterator[Refused]:
    room = {name: Quantity.parse(text) for name, text in node.allocatable.items()}
    if not room:
        return  # the cell is not known yet; the pool will say
    zero = Quantity(0)
    asked = [
        ("pods", 1, used.pods, room.get("pods", zero).value()),
        ("cpu", load.milli_cpu, used.milli_cpu, room.get("cpu", zero).milli_value()),
        ("memory", load.memory, used.memory, room.get("memory", zero).value()),
    ]
    # A pool that counts no disk does not announce any.
    if "ephemeral-storage" in room:
        storage = room["ephemeral-storage"].value()
        asked.append(("ephemeral-storage", load.storage, used.storage, storage))
    asked += [
        (name, amount, used.others.get(name, 0), room.get(name, zero).value())
        for name, amount in load.others
    ]
    for name, requested, taken, capacity in asked:
        if requested > 0 and requested > capacity - taken:
            yield Refused(
                f"OutOf{name}",
                f"Node didn't have enough resource: {name}, requested: {requested}, "
                f"used: {taken}, capacity: {capacity}",
            )


def _predicates(pod: Json, load: Load, used: Used, node: NodeView) -> Refused | None:
    if not matches_affinity(pod, node):
        words = "node(s) didn't match Pod's node affinity/selector"
        return _failed("NodeAffinity", words)._replace(by_labels=True)
    if any(_conflicts(port, used.ports) for port in load.ports):
        return _failed("NodePorts", "node(s) didn't have free ports for the requested pod ports")
    if not tolerates_no_execute(pod, node.taints):
        words = "node(s) had taints that the pod didn't tolerate"
        return _failed("TaintToleration", words)
    return None


def _failed(name: str, words: str) -> Refused:
    return Refused(name, f"Predicate {name} failed: {words}")


def _host_ports(pod: Json) -> Iterator[Port]:
    spec = pod["spec"]
    sidecars = (
        one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"
    )
    for container in (*sidecars, *spec["containers"]):
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                ip, protocol = port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP"
                yield Port(ip, protocol, int(port["hostPort"]))


def _conflicts(port: Port, used: Mapping[Port, int]) -> bool:
    if port.ip == "0.0.0.0":
        return any((one.protocol, one.port) == port[1:] for one in used)
    return port in used or port._replace(ip="0.0.0.0") in used
