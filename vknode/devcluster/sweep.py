"""Clears what a cluster leaves outside its folder: processes, mounts, cgroups, networks.

Works from the run record alone, so it serves a normal stop, the loss of a zone,
and `vknode dev stop` after a SIGKILL, all by the same steps. Everything is found
by what only this cluster can have (its own socket's path in a shim's arguments,
its folder above a mount, its bridge's name), never by a program's name alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vknode.devcluster import network
from vknode.devcluster.containerd import Places
from vknode.devcluster.mounts import unmount_below
from vknode.devcluster.process import process_start_time
from vknode.devcluster.state import Process, RunRecord, ZoneRecord, boot_id

#: Seconds that killed processes and their namespaces get to be gone.
PATIENCE = 60.0
SHIM = "shim"
#: containerd puts containers without a parent of their own below this cgroup, and
#: leaves it there when the last one is gone.
CONTAINERD_CGROUPS = ("k8s.io",)
#: A pool puts the groups of its Pods below this one and its own name.
POOL_CGROUPS = "vknode"
#: libcni keeps results here whatever the CNI folders are.
CNI_RESULTS = Path("/var/lib/cni/results")
CGROUPS = Path("/sys/fs/cgroup")


def sweep(record: RunRecord, programs: Mapping[str, Path]) -> list[str]:
    """Clear everything on record; returns what is left, in words (empty: all gone).

    Blocking. Idempotent: a second sweep finds nothing to do."""
    left: list[str] = []
    groups: list[str] = []
    if record.boot == boot_id():
        me = os.getpid()
        left += end_processes([one for one in record.processes if one.pid != me])
    for zone in record.zones:
        groups += [*CONTAINERD_CGROUPS, f"{POOL_CGROUPS}/{zone.name}", POOL_CGROUPS]
        left += sweep_zone(zone)
        left += _remove_network(zone, programs.get("ip", Path("ip")))
        left += remove_host_ports(zone, programs)
    if record.firewall_mark and "iptables" in programs:
        try:
            network.close_firewall(programs["iptables"], record.firewall_mark)
        except network.NetworkFailed as problem:
            left.append(str(problem))
    _remove_empty_cgroups(groups)
    return left


def end_processes(processes: Iterable[Process]) -> list[str]:
    """SIGKILL the recorded processes that are still the same ones; returns the survivors."""
    targets = [one for one in processes if one.alive()]
    for one in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while targets and time.monotonic() < deadline:
        targets = [one for one in targets if one.alive()]
        if targets:
            time.sleep(0.01)
    return [f"process {one.name} ({one.pid})" for one in targets]


def sweep_zone(zone: ZoneRecord) -> list[str]:
    """End a zone's containers and clear their mounts, sockets and cgroups, as a power cut
    does; images and metadata stay. Its containerd must be gone already."""
    places = Places(Path(zone.folder))
    groups = cgroup_paths(places)
    sockets = shim_sockets(places)
    left: list[str] = []
    deadline = time.monotonic() + PATIENCE
    # A shim that was just starting may show up late: until a look finds none.
    while found := zone_processes(places):
        # Containers first: their shims reap them. Killed together, a sandbox's PID
        # namespace would stay until process 1 comes round to reaping its members.
        left = end_processes(one for one in found if one.name != SHIM)
        left += end_processes(one for one in found if one.name == SHIM)
        if time.monotonic() > deadline:
            break
    left += unmount_below(Path(zone.folder))
    for socket in sockets:
        socket.unlink(missing_ok=True)
    left += remove_cgroups(groups)
    return left


def remove_host_ports(zone: ZoneRecord, programs: Mapping[str, Path]) -> list[str]:
    """Clear the rules by which the zone's Pods had ports of this machine."""
    if "iptables" not in programs:
        return []
    try:
        network.close_host_ports(programs["iptables"], zone.network)
    except network.NetworkFailed as problem:
        return [str(problem)]
    return []


def zone_processes(places: Places) -> list[Process]:
    """The zone's shims, by its socket in their arguments, and all their descendants."""
    parents: dict[int, int] = {}
    shims: list[int] = []
    marks = {str(places.socket).encode(), f"{places.socket}.ttrpc".encode()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # gone meanwhile
        pid = int(entry.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if b"containerd-shim" in words[0] and marks.intersection(words):
            shims.append(pid)
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: list[Process] = []
    queue = list(shims)
    while queue:
        pid = queue.pop()
        queue += children.get(pid, [])
        started = process_start_time(pid)
        if started is not None:
            found.append(Process(SHIM if pid in shims else "container", pid, started))
    return found


def _bundles(places: Places) -> list[Path]:
    return list(places.state.glob("io.containerd.runtime.v2.task/*/*"))


def cgroup_paths(places: Places) -> list[str]:
    """The cgroups of the zone's containers, as their runtime specs name them."""
    found = []
    for bundle in _bundles(places):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            spec = json.loads((bundle / "config.json").read_bytes())
            found.append(spec.get("linux", {}).get("cgroupsPath", ""))
    return [path for path in found if path.startswith("/") and path != "/"]


def shim_sockets(places: Places) -> list[Path]:
    """The sockets of the zone's shims, which lie in /run/containerd/s whatever `state` is."""
    found = []
    for bundle in _bundles(places):
        for name in ("address", "bootstrap.json"):
            with contextlib.suppress(OSError):
                text = (bundle / name).read_text()
                found += re.findall(r"unix://(/[^\"\s]+)", text)
    return [Path(one) for one in found]


def remove_cgroups(paths: Iterable[str], root: Path = CGROUPS) -> list[str]:
    """Remove the named cgroups in every hierarchy, and their parents that got empty."""
    left = []
    for path in paths:
        for hierarchy in _hierarchies(root):
            group = hierarchy / path.lstrip("/")
            if group.is_dir() and not _remove_cgroup(group):
                left.append(f"cgroup {group}")
                continue
            for parent in group.parents:
                if parent == hierarchy:
                    break
                try:
                    parent.rmdir()  # only succeeds when nobody is in it
                except OSError:
                    break
    return left


def _remove_empty_cgroups(names: Iterable[str], root: Path = CGROUPS) -> None:
    """Remove these top-level cgroups where nobody (no other containerd) uses them."""
    for name in names:
        for hierarchy in _hierarchies(root):
            with contextlib.suppress(OSError):
                (hierarchy / name).rmdir()


def _hierarchies(root: Path) -> list[Path]:
    if (root / "cgroup.controllers").exists():
        return [root]
    try:  # cgroup v1, or the hybrid layout
        return [one for one in root.iterdir() if one.is_dir() and not one.is_symlink()]
    except OSError:
        return []


def _remove_cgroup(group: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
            return True
        except FileNotFoundError:
            return True
        except OSError:  # EBUSY while the last process is being reaped
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _remove_network(zone: ZoneRecord, ip: Path) -> list[str]:
    for result in CNI_RESULTS.glob(f"{zone.network}-*"):
        result.unlink(missing_ok=True)
    ports = Path("/sys/class/net") / zone.bridge / "brif"
    deadline = time.monotonic() + PATIENCE
    # The kernel takes a dead namespace's interfaces away a moment after its last mount.
    while ports.is_dir() and any(ports.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        for port in ports.iterdir():
            subprocess.run([str(ip), "link", "del", port.name], capture_output=True, check=False)
    if ports.parent.exists():
        subprocess.run([str(ip), "link", "del", zone.bridge], capture_output=True, check=False)
    return [f"bridge {zone.bridge}"] if ports.parent.exists() else []
