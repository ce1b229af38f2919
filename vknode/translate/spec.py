"""Pod → SandboxSpec. Call `fields.check` first: what it refuses is not looked at here."""

from __future__ import annotations

from vknode.pool.v1 import spec_pb2
from vknode.translate.containers import RESTART, add_resources, container_spec
from vknode.translate.credentials import registry_credentials
from vknode.translate.dns import dns_config, domainname, hostname
from vknode.translate.downward import pod_ip_token, pod_ips_token
from vknode.translate.facts import Json, NodeFacts, Resolved
from vknode.translate.security import sandbox_security
from vknode.translate.services import service_env
from vknode.translate.volumes import VolumeNotReady, volumes

__all__ = ["VolumeNotReady", "sandbox_spec"]

_DEFAULT_GRACE = 30


def sandbox_spec(
    pod: Json, resolved: Resolved, node: NodeFacts, *, runs: bool = False
) -> spec_pb2.SandboxSpec | VolumeNotReady:
    """The whole spec, deterministic: the same input gives the same bytes.

    A container whose environment cannot be resolved has `config_error` set; a volume
    whose content is missing holds the whole Pod back, as on a kubelet, and is kept as it is
    where the Pod `runs` already (never VolumeNotReady then). Raises LookupError if something
    that `needs(pod)` names is not in `resolved` at all.
    """
    meta, spec = pod["metadata"], pod["spec"]
    content = volumes(pod, resolved, node, runs=runs)
    if isinstance(content, VolumeNotReady):
        return content
    services = service_env(pod, resolved.services)

    def containers(kind: str) -> list[spec_pb2.Container]:
        return [container_spec(pod, one, resolved, node, services) for one in spec.get(kind) or ()]

    result = spec_pb2.SandboxSpec(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        cell=node.cell,
        tenant=node.tenant,
        runtime_handler=node.runtime_handler,
        generation=meta.get("generation", 0),
        labels=meta.get("labels") or {},
        annotations=meta.get("annotations") or {},
        service_account_name=spec.get("serviceAccountName") or "",
        network=_network(pod, node),
        security=sandbox_security(pod),
        restart_policy=RESTART[spec.get("restartPolicy") or "Always"],
        termination_grace_period_seconds=spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE),
        active_deadline_seconds=spec.get("activeDeadlineSeconds"),
        share_process_namespace=bool(spec.get("shareProcessNamespace")),
        host_pid=bool(spec.get("hostPID")),
        host_ipc=bool(spec.get("hostIPC")),
        overhead={name: str(amount) for name, amount in (spec.get("overhead") or {}).items()},
        priority=spec.get("priority") or 0,
        init_containers=containers("initContainers"),
        containers=containers("containers"),
        ephemeral_containers=containers("ephemeralContainers"),
        volumes=content,
        registry_credentials=registry_credentials(pod, resolved)[0],
        host_ips=node.host_ips,
    )
    if spec.get("resources"):
        add_resources(result.resources, spec["resources"], node)
    _set_tokens(pod, result)
    return result


def _network(pod: Json, node: NodeFacts) -> spec_pb2.Network:
    spec = pod["spec"]
    return spec_pb2.Network(
        name=node.network,
        hostname=hostname(pod),
        hostname_as_fqdn=bool(spec.get("setHostnameAsFQDN")),
        domainname=domainname(pod, node),
        host_network=bool(spec.get("hostNetwork")),
        dns=dns_config(pod, node),
        host_aliases=[
            spec_pb2.HostAlias(ip=alias["ip"], hostnames=alias.get("hostnames") or ())
            for alias in spec.get("hostAliases") or ()
        ],
    )


def _set_tokens(pod: Json, result: spec_pb2.SandboxSpec) -> None:
    """Name the tokens only where they occur, so that most sandboxes need no search."""
    paths = {
        variable["valueFrom"]["fieldRef"]["fieldPath"]
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in pod["spec"].get(kind) or ()
        for variable in container.get("env") or ()
        if (variable.get("valueFrom") or {}).get("fieldRef")
    }
    if "status.podIP" in paths:
        result.pod_ip_token = pod_ip_token(pod)
    if "status.podIPs" in paths:
        result.pod_ips_token = pod_ips_token(pod)
