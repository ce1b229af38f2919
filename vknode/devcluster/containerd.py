"""Configuration of a zone's containerd, for 1.x (version 2) and 2.x (version 3)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vknode.devcluster.images import PAUSE_IMAGE

CAP_SYS_RESOURCE = 24


@dataclass(frozen=True)
class Places:
    """Where one containerd keeps everything; nothing is shared with another one."""

    folder: Path

    @property
    def root(self) -> Path:
        """Images, snapshots, metadata: what survives a power cut."""
        return self.folder / "root"

    @property
    def state(self) -> Path:
        """Bundles, mounts, network namespaces: what a power cut takes."""
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        """The gRPC socket (CRI and containerd's own services)."""
        return self.folder / "containerd.sock"

    @property
    def cni(self) -> Path:
        """The folder with the zone's one CNI configuration."""
        return self.folder / "cni"

    @property
    def leases(self) -> Path:
        """host-local's address leases."""
        return self.folder / "leases"

    @property
    def config(self) -> Path:
        """containerd's configuration file."""
        return self.folder / "containerd.toml"

    @property
    def registries(self) -> Path:
        """Where the mirrors of registries are told; only made if there are any."""
        return self.folder / "registries"


def major_version(containerd: Path) -> int:
    """1 or 2. Raises ValueError if the program does not tell."""
    said = subprocess.run(
        [str(containerd), "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"\bv?(\d+)\.\d+\.\d+", said)
    if found is None:
        raise ValueError(f"{containerd} --version says {said.strip()!r}, which has no version")
    return int(found.group(1))


def lacks_sys_resource(status: str) -> bool:
    """Whether a process with this /proc/PID/status may not lower an OOM score."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and not int(found.group(1), 16) >> CAP_SYS_RESOURCE & 1


def write_mirrors(places: Places, mirrors: Mapping[str, str]) -> None:
    """Have images of the registry HOST pulled from URL first, for each HOST: URL. The format is
    containerd's hosts.toml (docs/hosts.md of containerd)."""
    for host, url in mirrors.items():
        folder = places.registries / host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(
            f'server = "https://{host}"\n\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
        )


def render_config(
    places: Places,
    programs: Mapping[str, Path],
    major: int,
    *,
    restrict_oom: bool,
    mirrors: bool = False,
) -> str:
    """The configuration file. `restrict_oom`: without CAP_SYS_RESOURCE a sandbox's OOM
    score cannot be lowered and every start would fail. `mirrors`: there are some."""
    cni_bin = programs["bridge"].parent
    restrict = str(restrict_oom).lower()
    # Mounts of network namespaces go below `state`, where the sweep finds them.
    common = f"""
root = "{places.root}"
state = "{places.state}"
[grpc]
address = "{places.socket}"
"""
    options = """
runtime_type = "io.containerd.runc.v2"
"""
    registries = f'config_path = "{places.registries}"' if mirrors else ""
    if major >= 2:
        runtime = "plugins.'io.containerd.cri.v1.runtime'"
        return f"""version = 3
{common}
[{runtime}]
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true
[{runtime}.cni]
bin_dirs = ["{cni_bin}"]
conf_dir = "{places.cni}"
[{runtime}.containerd]
default_runtime_name = "runc"
[{runtime}.containerd.runtimes.runc]{options}
[{runtime}.containerd.runtimes.runc.options]
BinaryName = "{programs["runc"]}"
Root = "{places.folder}/runc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.images'.registry]
{registries}
[plugins.'io.containerd.grpc.v1.cri']
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins.'io.containerd.internal.v1.opt']
path = "{places.root}/opt"
"""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
# Snapshotters that this cluster does not use; probing for them takes time at the start.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
{common}
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[{cri}.cni]
bin_dir = "{cni_bin}"
conf_dir = "{places.cni}"
[{cri}.containerd]
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]{options}
[{cri}.containerd.runtimes.runc.options]
BinaryName = "{programs["runc"]}"
Root = "{places.folder}/runc"
[{cri}.registry]
{registries}
[plugins."io.containerd.internal.v1.opt"]
path = "{places.root}/opt"
"""
