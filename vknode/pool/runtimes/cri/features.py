"""What a runtime and its host can do, learnt once at connect."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vknode.pool.runtimes.cri import resolvconf
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.v1 import cell_pb2

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}


def memory_capacity() -> int:
    """Bytes of memory of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class Features:
    """`version` is the runtime's as numbers, (0,) where it tells none that we understand."""

    name: str = ""
    version: tuple[int, ...] = (0,)
    handlers: frozenset[str] = frozenset()
    recursive_read_only: frozenset[str] = frozenset()  # handlers
    strict_groups: bool = False
    app_armor: bool = False
    se_linux: bool = False  # in force on the host; else a runtime ignores labels
    port_mappings: bool = False  # the network maps ports of the host
    cgroupfs: bool = False  # it makes control groups itself, not by systemd
    pod_cgroups: bool = False  # each Pod has one of its own
    memory_capacity: int = field(default_factory=memory_capacity)

    @property
    def containerd(self) -> bool:
        return self.name == "containerd"

    @property
    def stop_signals(self) -> bool:
        """ContainerConfig.stop_signal is honoured (and not skipped as unknown)."""
        if self.containerd:
            return self.version >= (2, 2)
        return self.name == "cri-o" and self.version >= (1, 33)

    @property
    def image_volumes(self) -> bool:
        """Mount.image is honoured."""
        if self.containerd:
            return self.version >= (2, 1)
        return self.name == "cri-o" and self.version >= (1, 31)


def learn(version: cri_pb2.VersionResponse, status: cri_pb2.StatusResponse) -> Features:
    """From the answers to Version and Status(verbose)."""
    handlers = {h.name for h in status.runtime_handlers}
    if not handlers:
        handlers = _handlers_of_config(status.info.get("config", ""))
    return Features(
        name=version.runtime_name,
        version=_numbers(version.runtime_version),
        handlers=frozenset(handlers),
        recursive_read_only=frozenset(
            h.name for h in status.runtime_handlers if h.features.recursive_read_only_mounts
        ),
        strict_groups=status.features.supplemental_groups_policy,
        port_mappings=version.runtime_name == "cri-o"
        or _maps_ports(status.info.get("cniconfig", "")),
        cgroupfs=_makes_cgroups(status.info.get("config", "")),
        se_linux=Path("/sys/fs/selinux/enforce").exists(),
        app_armor=_read("/sys/module/apparmor/parameters/enabled").startswith("Y"),
    )


def not_ready(status: cri_pb2.StatusResponse) -> tuple[str, str] | None:
    """Reason and message of the first condition that does not hold."""
    for condition in status.status.conditions:
        if condition.type in ("RuntimeReady", "NetworkReady") and not condition.status:
            return condition.reason or f"{condition.type}False", (
                condition.message or f"the container runtime says {condition.type}=false"
            )
    return None


def node_info(version: cri_pb2.VersionResponse, resolv_conf: Path) -> cell_pb2.NodeInfo:
    """Facts of the host this pool runs on; CRI tells none of them."""
    machine = platform.machine()
    return cell_pb2.NodeInfo(
        operating_system="linux",
        architecture=_ARCHITECTURES.get(machine, machine),
        container_runtime_version=f"{version.runtime_name}://{version.runtime_version}",
        kernel_version=platform.release(),
        os_image=_os_image(),
        machine_id=_read("/etc/machine-id").strip(),
        boot_id=_read("/proc/sys/kernel/random/boot_id").strip(),
        host_dns=resolvconf.parse(_read(str(resolv_conf))),
    )


def _maps_ports(text: str) -> bool:
    """Whether a plugin of containerd's CNI configuration has that capability."""
    try:
        config: Any = json.loads(text) if text else {}
        return any(
            plugin["Network"].get("capabilities", {}).get("portMappings")
            for network in config.get("Networks") or ()
            for plugin in network["Config"].get("Plugins") or ()
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        return False


def _makes_cgroups(text: str) -> bool:
    """containerd tells its driver in the default runtime's options; others do not here."""
    try:
        containerd: Any = json.loads(text).get("containerd", {}) if text else {}
        runtimes = containerd.get("runtimes") or {}
        options = runtimes[containerd.get("defaultRuntimeName") or "runc"].get("options") or {}
    except (ValueError, AttributeError, KeyError):
        return False
    return not options.get("SystemdCgroup", False)


def _handlers_of_config(text: str) -> set[str]:
    """containerd before 2.0 lists its handlers only in its verbose configuration."""
    try:
        config: Any = json.loads(text) if text else {}
    except ValueError:
        return set()
    runtimes = config.get("containerd", {}).get("runtimes") if isinstance(config, dict) else None
    return {"", *runtimes} if isinstance(runtimes, dict) else set()


def _numbers(version: str) -> tuple[int, ...]:
    """ "v2.1.0-rc.1" → (2, 1, 0); Debian's "1.6.20~ds1" → (1, 6, 20)."""
    numbers: list[int] = []
    for part in version.removeprefix("v").split("."):
        digits = "".join(part[: len(part) - len(part.lstrip("0123456789"))])
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or (0,)


def _os_image() -> str:
    for line in _read("/etc/os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'")
    return "Linux"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
