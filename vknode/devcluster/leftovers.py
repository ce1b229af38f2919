"""What a development cluster could leave on the machine, counted.

A snapshot before and one after a run tell apart what the run left and what was
there before it. Linux only: it reads /proc, /sys/class/net and /run/netns.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """Names of things on this machine; each set holds printable descriptions."""

    processes: frozenset[str]
    mounts: frozenset[str]
    network_namespaces: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]

    def added_since(self, before: Snapshot) -> list[str]:
        """Everything that is here now and was not in `before`, one line each."""
        found: list[str] = []
        for kind in (
            "processes",
            "mounts",
            "network_namespaces",
            "links",
            "cgroups",
            "files",
        ):
            found += sorted(
                f"{kind.replace('_', ' ')}: {name}"
                for name in getattr(self, kind) - getattr(before, kind)
            )
        return found


def take(folder: Path) -> Snapshot:
    """The machine as it is now; `folder` is the cluster's state directory."""
    return Snapshot(
        processes=frozenset(_processes(str(folder))),
        mounts=frozenset(_mounts(str(folder))),
        network_namespaces=frozenset(_names(Path("/run/netns"))),
        links=frozenset(_names(Path("/sys/class/net"))),
        cgroups=frozenset(_cgroups()),
        files=frozenset(str(p) for p in (folder / "run", folder / "run.json") if p.exists()),
    )


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.name for entry in folder.iterdir()]
    return []


def _processes(folder: str) -> list[str]:
    """Processes of this cluster: they name its folder in their arguments (children, shims),
    or have their root file system below it (containers)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            root = next((line for line in _mount_lines(entry) if line.split()[4] == "/"), "")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (folder in command or folder in root):
                found.append(f"{entry.name} {command[:120]}")
    return found


def _mount_lines(process: Path) -> list[str]:
    return (process / "mountinfo").read_text().splitlines()


def _mounts(folder: str) -> list[str]:
    """Mounts below the folder or from it (overlays name their layers' folders)."""
    return [line.split()[4] for line in _mount_lines(Path("/proc/self")) if folder in line]


def _cgroups() -> list[str]:
    """Control groups of containers, in any controller of v1 and in v2."""
    root = Path("/sys/fs/cgroup")
    found = []
    for hierarchy in [root, *(p for p in root.iterdir() if p.is_dir() and not p.is_symlink())]:
        for name in ("k8s.io", "vknode", "kubepods"):
            with contextlib.suppress(OSError):
                found += [str(p) for p in (hierarchy / name).iterdir() if p.is_dir()]
    return found
