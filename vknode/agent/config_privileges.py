"""The section `privileges` of the agent's configuration: read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vknode.agent import names
from vknode.agent.config_reader import Reader
from vknode.agent.patterns import EVERY, fits, is_prefix_pattern
from vknode.agent.privileges import Grant
from vknode.pool.sysctls import bad_pattern
from vknode.translate.privileges import ALL_CAPABILITIES, Allowed

# linux/capability.h of Linux 6.12.
CAPABILITIES = frozenset(
    (
        *("AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF"),
        *("CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"),
        *("IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN"),
        *("MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW"),
        *("PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN"),
        *("SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE"),
        *("SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM"),
        ALL_CAPABILITIES,
    )
)


def read_privileges(root: Reader, pools: Sequence[str]) -> tuple[Grant, ...]:
    """`pools` are the names of the configured ones."""
    return tuple(_grant(reader, pools) for reader in root.sections("privileges"))


def _grant(reader: Reader, pools: Sequence[str]) -> Grant:
    namespaces = read_patterns(reader, "namespaces", names.is_dns_label, "a namespace")
    if not namespaces and not reader.reported("namespaces"):
        reader.problem(
            "namespaces",
            "is missing, and says who may",
            f"name them, such as [kube-system, logging-*], or [{EVERY!r}] for all",
        )
    cells = read_patterns(reader, "cells", names.is_dns_name, "a cell")
    of_pools = read_patterns(reader, "pools", names.is_dns_label, "a pool")
    for index, pattern in enumerate(of_pools):
        if not any(fits(pool, pattern) for pool in pools):
            reader.problem(
                f"pools[{index}]", f"{pattern!r} is no pool here", f"known are {', '.join(pools)}"
            )
    allow = _allow(reader.section("allow"))
    if allow == Allowed() and not reader.reported("allow"):
        reader.problem(
            "allow", "opens nothing", "say what, such as {hostNetwork: true}, or remove the entry"
        )
    reader.finish()
    return Grant(namespaces, allow, cells or (EVERY,), of_pools or (EVERY,))


def _allow(reader: Reader) -> Allowed:
    allowed = Allowed(
        host_paths=_host_paths(reader),
        host_network=reader.flag("hostNetwork"),
        host_pid=reader.flag("hostPID"),
        host_ipc=reader.flag("hostIPC"),
        privileged=reader.flag("privileged"),
        capabilities=_capabilities(reader),
        unsafe_sysctls=_sysctls(reader),
        unconfined=reader.flag("unconfined"),
        unconfined_by_default=reader.flag("unconfinedByDefault"),
    )
    reader.finish()
    return allowed


def read_patterns(
    reader: Reader, key: str, is_name: Callable[[str], bool], what: str
) -> tuple[str, ...]:
    """Names, or prefixes with one "*" at the end."""
    found = reader.texts(key)
    for index, pattern in enumerate(found):
        if not (is_name(pattern) or is_prefix_pattern(pattern)):
            reader.problem(
                f"{key}[{index}]",
                f"{pattern!r} is neither the name of {what} nor a prefix with '*' at its end",
                "write such as web, or web-*",
            )
    return found


def _host_paths(reader: Reader) -> tuple[str, ...]:
    found = reader.texts("hostPath")
    for index, path in enumerate(found):
        if not path.startswith("/") or ".." in path.split("/"):
            reader.problem(
                f"hostPath[{index}]",
                f"{path!r} is not an absolute path",
                "write a prefix such as /var/log, which opens everything below it, too",
            )
    return found


def _capabilities(reader: Reader) -> frozenset[str]:
    found = reader.texts("capabilities")
    for index, name in enumerate(found):
        if name not in CAPABILITIES:
            plain = name.upper().removeprefix("CAP_")
            fix = f"did you mean {plain}?" if plain in CAPABILITIES else "write such as NET_ADMIN"
            reader.problem(f"capabilities[{index}]", f"{name!r} is no capability of Linux", fix)
    return frozenset(found)


def _sysctls(reader: Reader) -> tuple[str, ...]:
    found = reader.texts("unsafeSysctls")
    for index, pattern in enumerate(found):
        if bad := bad_pattern(pattern):
            fix = "write such as net.core.somaxconn, or kernel.msg*"
            reader.problem(f"unsafeSysctls[{index}]", f"{pattern!r}: {bad}", fix)
    return found
