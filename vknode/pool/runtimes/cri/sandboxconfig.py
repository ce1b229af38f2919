"""SandboxSpec → PodSandboxConfig, and the content of /etc/hosts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vknode.pool.runtimes.cri import hostports, layout
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.resources import overhead_resources, sandbox_resources
from vknode.pool.runtimes.cri.storage import limits_of
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

# Longest host name that Linux takes, the final NUL not counted.
_MAX_KERNEL_HOSTNAME = 64
# Above the host's own file, for Pods in its network.
HOST_HEADER = "# Kubernetes-managed hosts file (host network).\n"
_PROTOCOLS = {"": cri_pb2.TCP, "TCP": cri_pb2.TCP, "UDP": cri_pb2.UDP, "SCTP": cri_pb2.SCTP}


def sandbox_config(
    spec: spec_pb2.SandboxSpec, attempt: int, paths: Layout, pool: str, cgroup_parent: str
) -> cri_pb2.PodSandboxConfig:
    """The same for RunPodSandbox and for every CreateContainer of this attempt."""
    config = cri_pb2.PodSandboxConfig(
        metadata=cri_pb2.PodSandboxMetadata(
            name=spec.name, uid=spec.uid, namespace=spec.namespace, attempt=attempt
        ),
        log_directory=str(paths.log_directory(spec.uid)),
        labels={**spec.labels, **pod_labels(spec, pool)},
        annotations=dict(spec.annotations),
        linux=cri_pb2.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=_security(spec),
            sysctls=dict(spec.security.sysctls),
        ),
    )
    if not spec.network.host_network:
        config.hostname = hostname(spec.network)
    if spec.network.HasField("dns"):
        dns = spec.network.dns
        config.dns_config.CopyFrom(
            cri_pb2.DNSConfig(servers=dns.servers, searches=dns.searches, options=dns.options)
        )
    for container in (*spec.init_containers, *spec.containers):
        for port in container.ports:
            if port.host_port or port.container_port:
                config.port_mappings.add(
                    protocol=_PROTOCOLS[port.protocol],
                    container_port=port.container_port,
                    host_port=port.host_port,
                    host_ip=port.host_ip,
                )
    if spec.network.host_network:
        config.annotations[layout.HOST_IPS] = ",".join(spec.host_ips)
    ports = hostports.ports_of(spec)
    if ports:
        config.annotations[layout.HOST_PORTS] = hostports.dump(ports)
    storage = limits_of(spec)
    if storage is not None:
        config.annotations[layout.STORAGE_LIMITS] = storage.dump()
    config.linux.overhead.CopyFrom(overhead_resources(spec))
    config.linux.resources.CopyFrom(sandbox_resources(spec))
    return config


def pod_labels(spec: spec_pb2.SandboxSpec, pool: str) -> dict[str, str]:
    """What marks a sandbox, and each of its containers, as ours."""
    return {
        layout.POD_NAME: spec.name,
        layout.POD_NAMESPACE: spec.namespace,
        layout.POD_UID: spec.uid,
        layout.POOL: pool,
        layout.CELL: spec.cell,
        layout.TENANT: spec.tenant,
    }


def namespaces(spec: spec_pb2.SandboxSpec) -> cri_pb2.NamespaceOption:
    node, pod = cri_pb2.NODE, cri_pb2.POD
    pid = pod if spec.share_process_namespace else cri_pb2.CONTAINER
    return cri_pb2.NamespaceOption(
        network=node if spec.network.host_network else pod,
        ipc=node if spec.host_ipc else pod,
        pid=node if spec.host_pid else pid,
    )


def se_linux_option(label: spec_pb2.SeLinux) -> cri_pb2.SELinuxOption:
    return cri_pb2.SELinuxOption(
        user=label.user, role=label.role, type=label.type, level=label.level
    )


def _security(spec: spec_pb2.SandboxSpec) -> cri_pb2.LinuxSandboxSecurityContext:
    security = spec.security
    groups = [security.fs_group] if security.HasField("fs_group") else []
    return cri_pb2.LinuxSandboxSecurityContext(
        namespace_options=namespaces(spec),
        supplemental_groups=[*groups, *security.supplemental_groups],
        supplemental_groups_policy=(
            cri_pb2.Strict if security.supplemental_groups_strict else cri_pb2.Merge
        ),
        privileged=any(
            c.security.privileged
            for c in (*spec.init_containers, *spec.containers, *spec.ephemeral_containers)
        ),
        seccomp=cri_pb2.SecurityProfile(profile_type=_pause_seccomp(spec)),
        selinux_options=(
            se_linux_option(security.se_linux) if security.HasField("se_linux") else None
        ),
    )


def _pause_seccomp(spec: spec_pb2.SandboxSpec) -> cri_pb2.SecurityProfile.ProfileType.ValueType:
    """A filter only where a container could take the pause process over.

    With a process namespace of its own nobody can trace it, and it runs nothing but
    itself; leaving the filter out starts a sandbox 13 ms sooner (of 80, runc 1.1).
    """
    if spec.share_process_namespace or spec.host_pid:
        return cri_pb2.SecurityProfile.RuntimeDefault
    return cri_pb2.SecurityProfile.Unconfined


def hostname(network: spec_pb2.Network) -> str:
    """The kernel's host name in the sandbox. Raises Failure("FailedCreatePodSandBox")."""
    if not network.hostname_as_fqdn or not network.domainname:
        return network.hostname
    full = f"{network.hostname}.{network.domainname}"
    if len(full) > _MAX_KERNEL_HOSTNAME:
        raise Failure(
            "FailedCreatePodSandBox",
            "failed to construct FQDN from pod hostname and cluster domain, FQDN "
            f"{full} is too long ({_MAX_KERNEL_HOSTNAME} characters is the max, {len(full)} "
            "characters requested)",
        )
    return full


def hosts_file(network: spec_pb2.Network, ips: Sequence[str]) -> str:
    """/etc/hosts as a kubelet manages it."""
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ]
    for ip in ips:
        if network.domainname:
            name = f"{network.hostname}.{network.domainname}\t{network.hostname}"
        else:
            name = network.hostname
        lines.append(f"{ip}\t{name}")
    return "\n".join(lines) + "\n" + alias_lines(network)


def alias_lines(network: spec_pb2.Network) -> str:
    if not network.host_aliases:
        return ""
    lines = ["", "# Entries added by HostAliases."]
    lines += ["\t".join((alias.ip, *alias.hostnames)) for alias in network.host_aliases]
    return "\n".join(lines) + "\n"
