"""What reaches beyond a Pod's own sandbox, and whether the Pod may have it. Pure.

Theory of operation. Nothing of this is open by itself. The agent's configuration opens parts of
it for namespaces and cells (`privileges`); the pool's owner opens them for the pool as a whole
(`vknode pool --allow-…`). Both must: the agent's word protects a cell's host from a namespace,
the pool's protects it from the agent.

==================  ====================================  ======================================
key under `allow`   what of a Pod                         why it is closed
==================  ====================================  ======================================
hostPath            hostPath volumes below the prefixes   the host's files
hostNetwork, …      hostNetwork, hostPID, hostIPC         the host's namespaces
privileged          securityContext.privileged            all devices, no filter, all rights
capabilities        capabilities.add beyond `COMMON`      SYS_ADMIN and others are worth as much
unsafeSysctls       sysctls beyond a kubelet's safe ones  they may change more than the Pod
unconfined          seccomp or AppArmor Unconfined        the kernel without its filter
==================  ====================================  ======================================

Ports of the host are open, as on every kubelet: they show a Pod to others, and nothing to the Pod;
the scheduler keeps them apart, and a pool's owner may refuse them.

A container that names no seccomp profile gets the runtime's own, as with a kubelet's
seccompDefault; `unconfinedByDefault` takes that back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vknode.pool import sysctls
from vknode.pool.hostpaths import host_path_allowed
from vknode.translate.facts import Json
from vknode.translate.paths import all_containers

# What runtimes give to every container (containerd and CRI-O in their defaults), and what
# `kubectl debug` adds with its usual profile: it reaches the processes of the Pod itself.
COMMON = frozenset(
    (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
        *("NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
        "SYS_PTRACE",
    )
)
ALL_CAPABILITIES = "ALL"


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a Pod may have of its cell's host. Nothing, unless it is said."""

    host_paths: tuple[str, ...] = ()
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    privileged: bool = False
    # Names without CAP_, or `ALL_CAPABILITIES`.
    capabilities: frozenset[str] = frozenset()
    # Names, or prefixes with a "*" at the end.
    unsafe_sysctls: tuple[str, ...] = ()
    unconfined: bool = False
    unconfined_by_default: bool = False

    def __or__(self, other: Allowed) -> Allowed:
        """Everything that one of them allows."""
        return Allowed(
            tuple(dict.fromkeys((*self.host_paths, *other.host_paths))),
            self.host_network or other.host_network,
            self.host_pid or other.host_pid,
            self.host_ipc or other.host_ipc,
            self.privileged or other.privileged,
            self.capabilities | other.capabilities,
            tuple(dict.fromkeys((*self.unsafe_sysctls, *other.unsafe_sysctls))),
            self.unconfined or other.unconfined,
            self.unconfined_by_default or other.unconfined_by_default,
        )


NOTHING = Allowed()


@dataclass(frozen=True, slots=True)
class Closed:
    """A field that asks for something closed. `opens` is the line of configuration that would
    open it; `forbidden` what a kubelet says of it, where it has a word."""

    path: str
    opens: str
    forbidden: str = ""


def closed(pod: Json, allowed: Allowed) -> list[Closed]:
    """Every field of the Pod that asks for more than it may have, in the order of the Pod."""
    return [*_pod(pod["spec"], allowed), *_containers(pod, allowed)]


def _pod(spec: Json, allowed: Allowed) -> Iterator[Closed]:
    for name, may in (
        ("hostNetwork", allowed.host_network),
        ("hostPID", allowed.host_pid),
        ("hostIPC", allowed.host_ipc),
    ):
        if spec.get(name) and not may:
            yield Closed(f"spec.{name}", f"{name}: true")
    security = spec.get("securityContext") or {}
    for index, entry in enumerate(security.get("sysctls") or ()):
        name = sysctls.normalize(entry["name"])
        # Whether it fits to namespaces of the host is another question (admission.py).
        forbidden = sysctls.problem(
            name, allowed.unsafe_sysctls, host_network=False, host_ipc=False
        )
        if forbidden:
            path = f"spec.securityContext.sysctls[{index}]"
            yield Closed(path, f"unsafeSysctls: [{name}]", forbidden)
    yield from _profiles("spec.securityContext", security, allowed)
    for index, volume in enumerate(spec.get("volumes") or ()):
        host_path = volume.get("hostPath")
        if host_path is not None and not host_path_allowed(host_path["path"], allowed.host_paths):
            yield Closed(f"spec.volumes[{index}].hostPath", f"hostPath: [{host_path['path']}]")


def _containers(pod: Json, allowed: Allowed) -> Iterator[Closed]:
    for path, container in all_containers(pod):
        security = container.get("securityContext") or {}
        here = f"{path}.securityContext"
        if security.get("privileged"):
            if not allowed.privileged:
                yield Closed(f"{here}.privileged", "privileged: true")
            continue  # with it comes everything else
        added = (security.get("capabilities") or {}).get("add") or ()
        for index, name in enumerate(added):
            plain = name.upper().removeprefix("CAP_")
            if plain in COMMON or {plain, ALL_CAPABILITIES} & allowed.capabilities:
                continue
            yield Closed(f"{here}.capabilities.add[{index}]", f"capabilities: [{plain}]")
        yield from _profiles(here, security, allowed)


def _profiles(path: str, security: Json, allowed: Allowed) -> Iterator[Closed]:
    for name in ("seccompProfile", "appArmorProfile"):
        if (security.get(name) or {}).get("type") == "Unconfined" and not allowed.unconfined:
            yield Closed(f"{path}.{name}", "unconfined: true")
