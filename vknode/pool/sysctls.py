"""Which kernel parameters a Pod may set, in a kubelet's words (pkg/kubelet/sysctl). Pure, for the
agent and for pools."""

from __future__ import annotations

from collections.abc import Sequence

# All are namespaced from Linux 4.15 on, and we need 5.6 anyway.
SAFE = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.tcp_slow_start_after_idle",
        "net.ipv4.tcp_notsent_lowat",
    }
)
_IPC = frozenset(
    {
        "kernel.sem",
        "kernel.shm",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
    }
)


def normalize(name: str) -> str:
    """With dots between its parts: "net/ipv4/conf/eth0.1" has a dot in a part, which
    becomes a slash."""
    first = next((c for c in name if c in "./"), ".")
    return name if first == "." else name.translate({ord("."): "/", ord("/"): "."})


def namespace(name: str) -> str:
    """ "Net", "IPC", or empty where a parameter is the whole host's."""
    if name.startswith("net."):
        return "Net"
    if name in _IPC or name.startswith("fs.mqueue."):
        return "IPC"
    return ""


def bad_pattern(pattern: str) -> str:
    """Why an operator cannot allow it; empty where they can. It ends in "*" or is a name."""
    stem, star, rest = normalize(pattern).partition("*")
    if rest or not stem:
        return "only one * is allowed, at the end"
    if not namespace(stem) and not (star and stem in ("kernel.shm", "kernel.msg")):
        return "it is not known to be namespaced: a Pod would set it for the whole host"
    return ""


def problem(name: str, unsafe: Sequence[str], *, host_network: bool, host_ipc: bool) -> str:
    """Why a Pod may not set it; empty where it may. `unsafe` are the operator's patterns."""
    name = normalize(name)
    if name not in SAFE and not any(_fits(name, normalize(pattern)) for pattern in unsafe):
        return f'forbidden sysctl: "{name}" not allowlisted'
    kind = namespace(name)
    if (kind == "Net" and host_network) or (kind == "IPC" and host_ipc):
        return f'forbidden sysctl: "{name}" not allowed with host {kind} enabled'
    return ""


def _fits(name: str, pattern: str) -> bool:
    stem, star, _ = pattern.partition("*")
    return name.startswith(stem) if star else name == pattern
