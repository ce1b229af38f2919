"""Security contexts: what a container says wins over what the Pod says."""

from __future__ import annotations

from typing import Any

from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import Json

_PROFILES = {
    "RuntimeDefault": spec_pb2.SecurityProfile.TYPE_RUNTIME_DEFAULT,
    "Unconfined": spec_pb2.SecurityProfile.TYPE_UNCONFINED,
    "Localhost": spec_pb2.SecurityProfile.TYPE_LOCALHOST,
}


def effective(pod_context: Json, container_context: Json, name: str) -> Any:
    """The container's value, else the Pod's; None where neither has one."""
    value = container_context.get(name)
    return pod_context.get(name) if value is None else value


def run_as_user(pod: Json, container: Json) -> int | None:
    value = effective(
        pod["spec"].get("securityContext") or {},
        container.get("securityContext") or {},
        "runAsUser",
    )
    return None if value is None else int(value)


def container_security(
    pod: Json, container: Json, *, seccomp_default: bool = False
) -> spec_pb2.ContainerSecurity:
    """With `seccomp_default` a container that names no profile gets the runtime's, as from a
    kubelet with seccompDefault (pkg/kubelet/kuberuntime/helpers.go, fieldSeccompProfile).
    Privileged ones have none in any runtime."""
    outer = pod["spec"].get("securityContext") or {}
    own = container.get("securityContext") or {}
    capabilities = own.get("capabilities") or {}
    result = spec_pb2.ContainerSecurity(
        run_as_user=effective(outer, own, "runAsUser"),
        run_as_group=effective(outer, own, "runAsGroup"),
        run_as_non_root=bool(effective(outer, own, "runAsNonRoot")),
        privileged=bool(own.get("privileged")),
        allow_privilege_escalation=own.get("allowPrivilegeEscalation"),
        read_only_root_filesystem=bool(own.get("readOnlyRootFilesystem")),
        capabilities_add=[_capability(name) for name in capabilities.get("add") or ()],
        capabilities_drop=[_capability(name) for name in capabilities.get("drop") or ()],
        proc_mount=own.get("procMount") or "",
    )
    _profiles(result, outer, own)
    if seccomp_default and not result.HasField("seccomp") and not result.privileged:
        result.seccomp.type = spec_pb2.SecurityProfile.TYPE_RUNTIME_DEFAULT
    return result


def sandbox_security(pod: Json) -> spec_pb2.SandboxSecurity:
    own = pod["spec"].get("securityContext") or {}
    result = spec_pb2.SandboxSecurity(
        fs_group=own.get("fsGroup"),
        fs_group_on_root_mismatch=own.get("fsGroupChangePolicy") == "OnRootMismatch",
        supplemental_groups=own.get("supplementalGroups") or (),
        supplemental_groups_strict=own.get("supplementalGroupsPolicy") == "Strict",
        sysctls={
            normal_sysctl(entry["name"]): entry["value"] for entry in own.get("sysctls") or ()
        },
    )
    _profiles(result, own, {})
    return result


def _profiles(
    result: spec_pb2.ContainerSecurity | spec_pb2.SandboxSecurity, outer: Json, own: Json
) -> None:
    for field, name in (("seccomp", "seccompProfile"), ("app_armor", "appArmorProfile")):
        profile = effective(outer, own, name)
        if profile:
            target = getattr(result, field)
            target.type = _PROFILES[profile["type"]]
            target.localhost_profile = profile.get("localhostProfile") or ""
    se_linux = effective(outer, own, "seLinuxOptions")
    if se_linux:
        for part in ("user", "role", "type", "level"):
            setattr(result.se_linux, part, se_linux.get(part) or "")


def _capability(name: str) -> str:
    upper = name.upper()
    return upper.removeprefix("CAP_")


def normal_sysctl(name: str) -> str:
    """With dots between its parts: "net/ipv4/conf/eth0.1/x" is "net.ipv4.conf.eth0/1.x"
    (NormalizeName of component-helpers)."""
    first = next((char for char in name if char in "./"), ".")
    return name if first == "." else name.translate({ord("."): "/", ord("/"): "."})
