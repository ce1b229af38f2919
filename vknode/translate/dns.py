"""Host name and resolver configuration, as the kubelet forms them."""

from __future__ import annotations

from collections.abc import Iterable

from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import Json, NodeFacts

_HOSTNAME_MAX = 63
# The kernel's limit for a host name, without the closing NUL.
_FQDN_MAX = 64
# k8s.io/kubernetes/pkg/apis/core/validation: what a resolver takes.
_MAX_SERVERS = 3
_MAX_SEARCHES = 32
_MAX_SEARCH_CHARS = 2048
_MAX_SEARCH_LENGTH = 253


def hostname(pod: Json) -> str:
    """spec.hostnameOverride, spec.hostname or the Pod's name, at most 63 characters."""
    spec = pod["spec"]
    name = spec.get("hostnameOverride")
    if name is None:
        name = spec.get("hostname") or pod["metadata"]["name"]
    return str(name) if len(name) <= _HOSTNAME_MAX else str(name)[:_HOSTNAME_MAX].rstrip("-.")


def domainname(pod: Json, node: NodeFacts) -> str:
    spec = pod["spec"]
    if not spec.get("subdomain") or spec.get("hostnameOverride") is not None:
        return ""
    return f"{spec['subdomain']}.{pod['metadata']['namespace']}.svc.{node.cluster_domain}"


def fqdn_problem(pod: Json, node: NodeFacts) -> str:
    """Why the fully qualified name cannot become the kernel's host name; empty: it can."""
    domain = domainname(pod, node)
    if not pod["spec"].get("setHostnameAsFQDN") or not domain:
        return ""
    name = f"{hostname(pod)}.{domain}"
    if len(name) <= _FQDN_MAX:
        return ""
    return (
        f"the fully qualified name {name} is too long ({_FQDN_MAX} characters is the max, "
        f"{len(name)} characters requested)"
    )


def _policy(pod: Json, node: NodeFacts) -> str:
    """The policy in force: "None", "Cluster" or "Host"."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "None":
        return "None"
    cluster = policy == "ClusterFirstWithHostNet" or (
        policy == "ClusterFirst" and not spec.get("hostNetwork")
    )
    # A kubelet without cluster DNS falls back in the same way.
    return "Cluster" if cluster and node.cluster_dns else "Host"


def missing_cluster_dns(pod: Json, node: NodeFacts) -> bool:
    """The Pod asks for cluster DNS and there is none: worth a MissingClusterDNS event."""
    return (
        not node.cluster_dns
        and _policy(pod, node) == "Host"
        and (pod["spec"].get("dnsPolicy") or "ClusterFirst") != "Default"
        and not pod["spec"].get("hostNetwork")
    )


def lacks_host_dns(pod: Json, node: NodeFacts) -> bool:
    """dnsConfig adds to the host's resolver configuration, which is not known."""
    config = pod["spec"].get("dnsConfig") or {}
    return any(config.values()) and node.host_dns is None and _policy(pod, node) == "Host"


def dns_config(pod: Json, node: NodeFacts) -> spec_pb2.DnsConfig | None:
    """None leaves the cell host's own configuration in force."""
    policy = _policy(pod, node)
    config = pod["spec"].get("dnsConfig") or {}
    base = node.host_dns
    if policy == "Host" and not any(config.values()):
        return None
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    if policy == "Cluster":
        servers = list(node.cluster_dns)
        if node.cluster_domain:
            domain = node.cluster_domain
            searches = [f"{pod['metadata']['namespace']}.svc.{domain}", f"svc.{domain}", domain]
        searches += base.searches if base is not None else ()
        options = {"ndots": "5"}
    elif policy == "Host" and base is not None:
        servers, searches = list(base.servers), list(base.searches)
        for option in base.options:
            name, _, value = option.partition(":")
            options[name] = value
    servers += config.get("nameservers") or ()
    searches += config.get("searches") or ()
    for entry in config.get("options") or ():
        options[entry["name"]] = entry.get("value") or ""
    return spec_pb2.DnsConfig(
        servers=_unique(servers)[:_MAX_SERVERS],
        searches=_fitting(_unique(searches)),
        options=[f"{name}:{value}" if value else name for name, value in options.items()],
    )


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _fitting(searches: list[str]) -> list[str]:
    """What a resolver can hold, cut from the end as the kubelet cuts it."""
    fitting = [one for one in searches[:_MAX_SEARCHES] if len(one) <= _MAX_SEARCH_LENGTH]
    while fitting and len(" ".join(fitting)) > _MAX_SEARCH_CHARS:
        fitting.pop()
    return fitting
