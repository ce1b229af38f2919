"""Pods, nodes and looked-up objects as the API server would hand them out."""

from __future__ import annotations

import base64
from typing import Any

import yaml

from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import Missing, NodeFacts, Resolved, StatusFacts
from vknode.translate.spec import sandbox_spec

Json = dict[str, Any]

UID = "6f0d6a3e-8f8e-4d0e-9d6c-000000000001"
NODE = NodeFacts(
    cell="az1-cell-1",
    host_ips=("192.168.1.10", "fd00::10"),
    tenant="team-a",
    cluster_dns=("10.96.0.10",),
    allocatable={"cpu": "8", "memory": "16Gi", "ephemeral-storage": "100Gi"},
)
FACTS = StatusFacts(now="2026-03-01T10:00:00Z", host_ips=("192.168.1.10",))


def pod(spec: str | Json = "", *, mount_all: bool = True, **metadata: Any) -> Json:
    """A Pod around the YAML of its spec; a container "web" where it has none.

    Volumes that no container mounts are mounted by the first one: others do nothing.
    """
    parsed: Json = (yaml.safe_load(spec) if isinstance(spec, str) else spec) or {}
    parsed.setdefault("containers", [{"name": "web", "image": "web:1"}])
    first = parsed["containers"][0]
    mounted = {mount["name"] for mount in first.get("volumeMounts", ())}
    for volume in parsed.get("volumes", ()):
        if mount_all and volume["name"] not in mounted:
            path = f"/mnt/{volume['name']}"
            first.setdefault("volumeMounts", []).append({"name": volume["name"], "mountPath": path})
    parsed.setdefault("restartPolicy", "Always")
    parsed.setdefault("terminationGracePeriodSeconds", 30)
    parsed.setdefault("enableServiceLinks", True)
    parsed.setdefault("nodeName", "az1-cell-1")
    parsed.setdefault("serviceAccountName", "default")
    parsed.setdefault("dnsPolicy", "ClusterFirst")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "uid": UID, "generation": 1, **metadata},
        "spec": parsed,
        "status": {"phase": "Pending", "qosClass": ""},
    }


def container_pod(container: str, **metadata: Any) -> Json:
    """A Pod of one container "web" with this YAML."""
    body = {"name": "web", "image": "web:1", **(yaml.safe_load(container) or {})}
    return pod({"containers": [body]}, **metadata)


def config_map(**data: str) -> Json:
    return {"metadata": {"name": "any", "namespace": "shop"}, "data": data}


def secret(**data: str | bytes) -> Json:
    return {
        "type": "Opaque",
        "data": {
            key: base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
            for key, value in data.items()
        },
    }


def absent(kind: str, name: str) -> Missing:
    """What the API server says of an object that does not exist."""
    return Missing(f'{kind}s "{name}" not found')


def spec_of(
    a_pod: Json, resolved: Resolved | None = None, node: NodeFacts = NODE
) -> spec_pb2.SandboxSpec:
    """The spec; fails where a volume is not ready."""
    result = sandbox_spec(a_pod, resolved or Resolved(), node)
    assert isinstance(result, spec_pb2.SandboxSpec), result
    return result


def env_of(a_pod: Json, resolved: Resolved | None = None, node: NodeFacts = NODE) -> dict[str, str]:
    container = spec_of(a_pod, resolved, node).containers[0]
    assert not container.config_error, container.config_error
    return {variable.name: variable.value for variable in container.env}
