"""A cell as a Node object, and the patches that lead from what is there to what shall be. Pure.

What is written and why (facts from kubelet 1.37, pkg/kubelet/kubelet_node_status.go and
nodestatus/setters.go):

* POST of a Node may carry its status, so registering takes one request.
* Conditions go through a strategic merge patch by `type`: those of other writers (a CNI's
  NetworkUnavailable) stay. Ready comes last in the list.
* `lastTransitionTime` moves with the condition's status only, `lastHeartbeatTime` with every
  report.
* Addresses have a broken merge key, hence kubelet's leading `{"$patch": "replace"}`.
* Quantities are compared as numbers: the API server writes "1000m" back as "1".
* Taints are given at registration and then left to their owners: the list is replaced as a
  whole, and the node lifecycle controller edits it all the time.
* declaredFeatures are those of a kubelet 1.37 on Linux (component-helpers' nodedeclaredfeatures).
  The API server refuses resizes, and the scheduler Pods, that need one which a node does not
  declare; `ExtendWebSocketsToKubelet` makes a 1.36+ API server pass WebSockets straight through.
  What a pool cannot do all the same it refuses itself.
* features.supplementalGroupsPolicy is CRI's word on a kubelet. A cell tells its runtime's version:
  where that is a known one it says the same, else the field is left out and the pool decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from vknode import __version__
from vknode.agent import names
from vknode.agent.config import AgentConfig, Taint
from vknode.kube.models import ObjectMeta
from vknode.pool.v1 import cell_pb2
from vknode.translate.quantity import Quantity

# The release whose kubelet we take as the yardstick; "+" is semver's build metadata, so that
# whoever compares versions sees that release.
KUBELET_VERSION = f"v1.37.2+vknode.{__version__}"
DECLARED_FEATURES = (
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
)
# The first version of a runtime that keeps supplementalGroupsPolicy Strict.
_STRICT_GROUPS = {"containerd": (2, 0), "cri-o": (1, 31)}
_VERSION = re.compile(r"([a-z-]+)://v?(\d+)\.(\d+)")

# Not our word, but one that a pool may well want to say (the proto's own example).
_POOL_LABELS_ALLOWED = frozenset(("node.kubernetes.io/instance-type",))
# Which keys of the labels we wrote: to take back what is no longer wanted, and only that.
ANNOTATION_LABELS = "vknode.dev/labels"
# The Node is unschedulable because its pool wants the cell emptied, not because a person said so.
ANNOTATION_DRAINING = "vknode.dev/draining"

REASON_READY = "KubeletReady"
REASON_POOL_UNREACHABLE = "PoolUnreachable"
REASON_CELL_GONE = "CellGone"
REASON_CELL_UNHEALTHY = "CellUnhealthy"

_PRESSURES = (
    ("MemoryPressure", "KubeletHasSufficientMemory", "the cell has sufficient memory available"),
    ("DiskPressure", "KubeletHasNoDiskPressure", "the cell has no disk pressure"),
    ("PIDPressure", "KubeletHasSufficientPID", "the cell has sufficient PID available"),
)


@dataclass(frozen=True)
class NodeSettings:
    """What is the same for all Nodes of an agent. `kubelet_port` is the one really bound; it
    stands for a node that has no port of its own."""

    agent_name: str
    address: str
    kubelet_port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    extended_resources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: AgentConfig, kubelet_port: int | None = None) -> NodeSettings:
        port = config.kubelet.port if kubelet_port is None else kubelet_port
        return cls(
            config.name,
            config.kubelet.address,
            port,
            config.node_labels,
            config.taints,
            config.extended_resources,
        )


@dataclass(frozen=True)
class Readiness:
    ready: bool
    reason: str
    message: str


@dataclass(frozen=True)
class DesiredNode:
    """`status` has no conditions; it is None while the cell's facts are unknown (the pool has
    not been reached since the agent began): then only `readiness` may be reported."""

    name: str
    pool: str
    readiness: Readiness
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    provider_id: str = ""
    taints: tuple[Taint, ...] = ()
    draining: bool = False
    status: Mapping[str, Any] | None = None


class Condition(msgspec.Struct, rename="camel"):
    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class _Spec(msgspec.Struct, rename="camel"):
    provider_id: str = msgspec.field(name="providerID", default="")
    unschedulable: bool = False
    taints: list[dict[str, str]] | None = None


class _Status(msgspec.Struct, rename="camel"):
    capacity: dict[str, str] | None = None
    allocatable: dict[str, str] | None = None
    conditions: list[Condition] | None = None
    addresses: list[dict[str, str]] | None = None
    daemon_endpoints: dict[str, Any] | None = None
    node_info: dict[str, Any] | None = None
    runtime_handlers: list[dict[str, Any]] | None = None
    features: dict[str, Any] | None = None
    declared_features: list[str] | None = None


class ObservedNode(msgspec.Struct):
    """A Node as the API server has it, as far as we write it."""

    metadata: ObjectMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)

    @property
    def managed_by(self) -> str:
        return (self.metadata.labels or {}).get(names.LABEL_MANAGED_BY, "")

    @property
    def pool(self) -> str:
        return (self.metadata.labels or {}).get(names.LABEL_POOL, "")

    @property
    def cell(self) -> str:
        return (self.metadata.annotations or {}).get(names.ANNOTATION_CELL, "")

    @property
    def kubelet_port(self) -> int | None:
        """Where the API server asks this node; None: nowhere yet."""
        port = ((self.status.daemon_endpoints or {}).get("kubeletEndpoint") or {}).get("Port")
        return port if isinstance(port, int) and port > 0 else None

    def condition(self, type: str) -> Condition | None:
        for condition in self.status.conditions or ():
            if condition.type == type:
                return condition
        return None


decode_node = msgspec.json.Decoder(ObservedNode).decode


def is_ours(there: ObservedNode, desired: DesiredNode, agent: str) -> bool:
    """Whether the Node of that name is this agent's."""
    # The second: somebody took our label off the Node of this very cell.
    return there.managed_by == agent or (
        not there.managed_by and there.spec.provider_id == desired.provider_id
    )


def is_newer(obj: ObservedNode, there: ObservedNode | None) -> bool:
    """Whether it tells more than what is known; another UID always does."""
    if there is None or there.metadata.uid != obj.metadata.uid:
        return True
    try:
        return int(obj.metadata.resource_version) > int(there.metadata.resource_version)
    except ValueError:
        return True


def cell_readiness(cell: cell_pb2.Cell) -> Readiness:
    """Ready as the pool announces it."""
    if cell.health == cell_pb2.HEALTH_HEALTHY:
        return Readiness(True, REASON_READY, "the pool reports the cell as healthy")
    return Readiness(
        False,
        cell.health_reason or REASON_CELL_UNHEALTHY,
        cell.health_message or "the pool reports the cell as unhealthy",
    )


def desired_node(
    name: str,
    pool: str,
    cell: cell_pb2.Cell,
    settings: NodeSettings,
    readiness: Readiness,
    kubelet_port: int | None = None,
) -> DesiredNode:
    """The Node for a cell. `kubelet_port` is the node's own; None: it has the shared one."""
    info = cell.info
    return DesiredNode(
        name=name,
        pool=pool,
        readiness=readiness,
        labels=_labels(name, pool, cell, settings),
        # Not among them: volumes.kubernetes.io/controller-managed-attach-detach. Its mere presence
        # makes the attach-detach controller attach disks to a machine that is not there.
        annotations={names.ANNOTATION_CELL: cell.name},
        provider_id=f"vknode://{pool}/{cell.name}",
        taints=settings.taints,
        draining=cell.draining,
        status={
            "capacity": kubernetes_names(cell.capacity, settings.extended_resources),
            "allocatable": allocatable(cell, settings.extended_resources),
            "addresses": [
                {"type": "InternalIP", "address": settings.address},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port or settings.kubelet_port}},
            "nodeInfo": {
                "machineID": info.machine_id,
                "systemUUID": info.machine_id,
                "bootID": info.boot_id,
                "kernelVersion": info.kernel_version,
                "osImage": info.os_image,
                "containerRuntimeVersion": info.container_runtime_version,
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": info.operating_system or "linux",
                "architecture": info.architecture,
            },
            "runtimeHandlers": [
                {
                    "name": handler,
                    "features": {"recursiveReadOnlyMounts": False, "userNamespaces": False},
                }
                for handler in sorted({"", *cell.runtime_handlers})
            ],
            "features": _features(cell),
            "declaredFeatures": list(DECLARED_FEATURES),
        },
    )


def strict_groups(cell: cell_pb2.Cell) -> bool | None:
    """Whether supplementalGroupsPolicy Strict is kept there; None: only the pool knows."""
    match = _VERSION.match(cell.info.container_runtime_version)
    first = _STRICT_GROUPS.get(match[1]) if match else None
    if match is None or first is None:
        return None
    return (int(match[2]), int(match[3])) >= first


def _features(cell: cell_pb2.Cell) -> dict[str, Any]:
    strict = strict_groups(cell)
    return {} if strict is None else {"supplementalGroupsPolicy": strict}


def kubernetes_names(resources: Mapping[str, str], extended: Mapping[str, str]) -> dict[str, str]:
    """A cell's resources under the names that Pods use; `extended` as in the configuration."""
    shown = {of_pools: name for name, of_pools in extended.items()}
    return {shown.get(name, name): amount for name, amount in resources.items()}


def allocatable(cell: cell_pb2.Cell, extended: Mapping[str, str]) -> dict[str, str]:
    """What Pods may ask for; a cell that does not say so gives all that it has."""
    return kubernetes_names(cell.allocatable or cell.capacity, extended)


def refused_labels(cell: cell_pb2.Cell) -> list[str]:
    """Keys of the cell's labels that are left out: not valid, Kubernetes' own, or ours."""
    return sorted(key for key, value in cell.labels.items() if not _label_allowed(key, value))


def cell_problems(cell: cell_pb2.Cell) -> list[str]:
    """Why no Node can be made of the cell; empty when one can."""
    problems = []
    if not cell.name:
        problems.append("name is empty")
    if not cell.zone:
        problems.append("zone is empty")
    elif not names.is_label_value(cell.zone):
        problems.append(f"zone {cell.zone!r} is not a label value")
    if not names.is_label_value(cell.region):
        problems.append(f"region {cell.region!r} is not a label value")
    for key in ("cpu", "memory", "pods"):
        if key not in cell.capacity:
            problems.append(f"capacity lacks {key!r}")
    for field_name, resources in (("capacity", cell.capacity), ("allocatable", cell.allocatable)):
        for key, value in resources.items():
            try:
                amount = Quantity.parse(value)
            except ValueError as error:
                problems.append(f"{field_name}[{key}]: {error}")
                continue
            if amount.nano < 0:
                problems.append(f"{field_name}[{key}] is negative")
    if cell.health == cell_pb2.HEALTH_UNSPECIFIED:
        problems.append("health is not given")
    return problems


def create_body(desired: DesiredNode, now: datetime) -> bytes:
    """POST /api/v1/nodes. Needs `desired.status`."""
    if desired.status is None:
        raise ValueError(f"node {desired.name}: its cell is not known, it cannot be created")
    spec: dict[str, Any] = {"providerID": desired.provider_id}
    if desired.taints:
        spec["taints"] = [
            {"key": t.key, "value": t.value, "effect": t.effect} for t in desired.taints
        ]
    annotations = {**desired.annotations, ANNOTATION_LABELS: _label_list(desired.labels)}
    if desired.draining:
        spec["unschedulable"] = True
        annotations[ANNOTATION_DRAINING] = "true"
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": desired.name,
                "labels": desired.labels,
                "annotations": annotations,
            },
            "spec": spec,
            "status": {**desired.status, "conditions": _conditions(desired.readiness, None, now)},
        }
    )


def metadata_patch(desired: DesiredNode, observed: ObservedNode) -> bytes | None:
    """Merge patch of labels, annotations, providerID, unschedulable; None when all is right."""
    if desired.status is None:
        return None
    labels = observed.metadata.labels or {}
    annotations = observed.metadata.annotations or {}
    label_changes: dict[str, str | None] = {
        key: value for key, value in desired.labels.items() if labels.get(key) != value
    }
    for key in annotations.get(ANNOTATION_LABELS, "").split(","):
        if key in labels and key not in desired.labels:
            label_changes[key] = None
    wanted: dict[str, str] = {
        **desired.annotations,
        ANNOTATION_LABELS: _label_list(desired.labels),
    }
    annotation_changes: dict[str, str | None] = {
        key: value for key, value in wanted.items() if annotations.get(key) != value
    }
    spec: dict[str, Any] = {}
    if not observed.spec.provider_id:  # it can be set once and never changed
        spec["providerID"] = desired.provider_id
    # A person's cordon is theirs: we lift only what we set ourselves.
    ours = annotations.get(ANNOTATION_DRAINING) == "true"
    if desired.draining and not observed.spec.unschedulable:
        spec["unschedulable"] = True
        annotation_changes[ANNOTATION_DRAINING] = "true"
    elif not desired.draining and ours:
        spec["unschedulable"] = None
        annotation_changes[ANNOTATION_DRAINING] = None
    metadata: dict[str, Any] = {}
    if label_changes:
        metadata["labels"] = label_changes
    if annotation_changes:
        metadata["annotations"] = annotation_changes
    if not metadata and not spec:
        return None
    metadata["uid"] = observed.metadata.uid  # never another Node of the same name
    patch: dict[str, Any] = {"metadata": metadata}
    if spec:
        patch["spec"] = spec
    return msgspec.json.encode(patch)


def status_patch(
    desired: DesiredNode, observed: ObservedNode, now: datetime, *, refresh: bool = False
) -> bytes | None:
    """Strategic merge patch of the status; None when nothing changed and no `refresh` is due."""
    changes = _status_changes(desired.status, observed.status) if desired.status else {}
    if not changes and not refresh and not conditions_differ(desired.readiness, observed):
        return None
    changes["conditions"] = _conditions(desired.readiness, observed, now)
    return msgspec.json.encode({"metadata": {"uid": observed.metadata.uid}, "status": changes})


def conditions_differ(readiness: Readiness, observed: ObservedNode) -> bool:
    """Whether what we would report differs from what is there, times aside."""
    return any(
        (current := observed.condition(type)) is None
        or (current.status, current.reason, current.message) != (status, reason, message)
        for type, status, reason, message in _wanted(readiness)
    )


def _labels(name: str, pool: str, cell: cell_pb2.Cell, settings: NodeSettings) -> dict[str, str]:
    labels = {key: value for key, value in cell.labels.items() if _label_allowed(key, value)}
    labels.update(settings.labels)
    system, machine = cell.info.operating_system or "linux", cell.info.architecture
    labels.update(
        {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": system,
            "beta.kubernetes.io/os": system,
            "topology.kubernetes.io/zone": cell.zone,
            "type": "virtual-kubelet",
            names.LABEL_MANAGED_BY: settings.agent_name,
            names.LABEL_POOL: pool,
        }
    )
    if machine:
        labels["kubernetes.io/arch"] = labels["beta.kubernetes.io/arch"] = machine
    if cell.region:
        labels["topology.kubernetes.io/region"] = cell.region
    return labels


def _label_allowed(key: str, value: str) -> bool:
    if not names.is_label_key(key) or not names.is_label_value(value):
        return False
    if key in names.AGENT_LABELS:
        return False
    return key in _POOL_LABELS_ALLOWED or not names.is_kubernetes_label(key)


def _label_list(labels: Iterable[str]) -> str:
    return ",".join(sorted(labels))


def _wanted(readiness: Readiness) -> list[tuple[str, str, str, str]]:
    wanted = [(type, "False", reason, message) for type, reason, message in _PRESSURES]
    status = "True" if readiness.ready else "False"
    return [*wanted, ("Ready", status, readiness.reason, readiness.message)]


def _conditions(
    readiness: Readiness, observed: ObservedNode | None, now: datetime
) -> list[dict[str, str]]:
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for type, status, reason, message in _wanted(readiness):
        current = observed.condition(type) if observed is not None else None
        since = stamp
        if current is not None and current.status == status and current.last_transition_time:
            since = current.last_transition_time
        conditions.append(
            {
                "type": type,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": stamp,
                "lastTransitionTime": since,
            }
        )
    return conditions


def _status_changes(wanted: Mapping[str, Any], there: _Status) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, current in (("capacity", there.capacity), ("allocatable", there.allocatable)):
        difference = _resource_changes(wanted[key], current or {})
        if difference:
            changes[key] = difference
    if wanted["addresses"] != (there.addresses or []):
        changes["addresses"] = [{"$patch": "replace"}, *wanted["addresses"]]
    if wanted["daemonEndpoints"] != there.daemon_endpoints:
        changes["daemonEndpoints"] = wanted["daemonEndpoints"]
    info = there.node_info or {}
    if any(info.get(key, "") != value for key, value in wanted["nodeInfo"].items()):
        changes["nodeInfo"] = wanted["nodeInfo"]
    # The API server may leave out empty names and false flags, so empty and missing are equal.
    if [_stripped(h) for h in wanted["runtimeHandlers"]] != [
        _stripped(h) for h in there.runtime_handlers or ()
    ]:
        changes["runtimeHandlers"] = wanted["runtimeHandlers"]
    if wanted["features"] != (there.features or {}):
        changes["features"] = wanted["features"] or None
    if wanted["declaredFeatures"] != (there.declared_features or []):
        changes["declaredFeatures"] = wanted["declaredFeatures"]
    return changes


def _resource_changes(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {
        key: value for key, value in wanted.items() if not _same_amount(value, there.get(key))
    }
    changes.update({key: None for key in there if key not in wanted})
    return changes


def _same_amount(text: str, other: str | None) -> bool:
    if other is None:
        return False
    return text == other or Quantity.parse(text).nano == Quantity.parse(other).nano


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _stripped(item))}
    return value
