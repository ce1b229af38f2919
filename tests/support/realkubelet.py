"""The real kubelet as a node, on a containerd of its own: what our nodes are compared with.

Same control plane, same containerd, same images and the same machine as the development
cluster; only the node agent differs. It keeps everything below its zone's folder, so
that the cluster's own sweep clears its mounts too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.fixtures import Running, started
from vknode.devcluster.cluster import NODES_WITHIN, DevCluster
from vknode.devcluster.imagelayout import Archive
from vknode.devcluster.kubeconfig import write_kubeconfig
from vknode.devcluster.pki import KeyPair
from vknode.devcluster.ports import pick_port
from vknode.devcluster.process import Child
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE
from vknode.devcluster.sweep import remove_cgroups
from vknode.devcluster.zone import Zone

NODE = "kubelet"
#: All programs that `real_kubelet` needs.
PROGRAMS = (*CONTROL_PLANE, *CONTAINERD, "kubelet")
#: Links to the containers' logs; no setting of a kubelet's changes the place.
LOG_LINKS = Path("/var/log/containers")
KERNEL_SETTINGS = tuple(
    Path("/proc/sys") / name
    for name in (
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/panic",
        "kernel/panic_on_oops",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
    )
)
#: Inner before outer.
FIXED_FOLDERS = (
    LOG_LINKS,
    Path("/var/lib/kubelet/device-plugins"),
    Path("/var/lib/kubelet"),
)


@dataclass(frozen=True)
class RealKubelet:
    """A cluster whose one node is the real kubelet."""

    running: Running
    child: Child

    @property
    def node(self) -> str:
        return NODE

    def log(self) -> str:
        return self.child.log.read_text(errors="replace")


@contextmanager
def real_kubelet(
    programs: Mapping[str, Path],
    *,
    more_images: Sequence[Archive] = (),
    mirrors: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    apiserver_features: Mapping[str, bool] | None = None,
) -> Iterator[RealKubelet]:
    """A control plane, a containerd and the kubelet of `programs`, Ready.

    `more_images`, `mirrors` and `apiserver_features` are DevCluster's; `config` replaces fields
    of its KubeletConfiguration. Raises what DevCluster.start raises; at the end nothing is
    left, and no child may have crashed."""
    with (
        _kernel_settings(),
        _folders_of_its_own(),
        _cgroup() as cgroup,
        started(
            runtime="cri",
            zones=1,
            cells_per_zone=1,
            agent=False,
            pools=False,
            more_images=more_images,
            mirrors=mirrors,
            apiserver_features=apiserver_features,
            programs=programs,
        ) as running,
    ):
        cluster, thread = running.cluster, running.thread
        zone = cluster.zones["az1"]
        child = _child(cluster, zone, programs["kubelet"], {"cgroupRoot": cgroup, **(config or {})})
        try:
            thread.run(child.start())
            thread.run(
                cluster.wait_nodes(lambda seen: seen[NODE], timeout=NODES_WITHIN),
                timeout=NODES_WITHIN + 10,
            )
            yield RealKubelet(running, child)
            assert child.running, f"the kubelet ended:\n{_tail(child.log)}"
        except TimeoutError as problem:
            raise AssertionError(f"{problem}; the kubelet's log:\n{_tail(child.log)}") from problem
        finally:
            # Before its containerd: it would only log that that is gone.
            thread.run(child.kill())
            _remove_links(zone.folder)


@contextmanager
def _kernel_settings() -> Iterator[None]:
    """Put back what a kubelet changes of the machine's kernel at its start (the settings of
    `setupKernelTunables` in pkg/kubelet/cm/container_manager_linux.go)."""
    before = {path: path.read_text() for path in KERNEL_SETTINGS if path.exists()}
    try:
        yield
    finally:
        for path, content in before.items():
            if path.read_text() != content:
                path.write_text(content)


@contextmanager
def _cgroup() -> Iterator[str]:
    """A control group of its own in every hierarchy, below which it makes its Pods' groups:
    so that two kubelets on one machine do not meet, and nothing of it stays."""
    name = f"/vknode-kubelet-{uuid.uuid4().hex[:6]}"
    root = Path("/sys/fs/cgroup")
    hierarchies = [root]
    if not (root / "cgroup.controllers").exists():  # version 1, or the hybrid layout
        hierarchies = [one for one in root.iterdir() if one.is_dir() and not one.is_symlink()]
    try:
        for hierarchy in hierarchies:
            group = hierarchy / name[1:]
            group.mkdir()
            for setting in ("cpuset.cpus", "cpuset.mems"):
                # A fresh group of version 1 has none, and could hold no process.
                if (hierarchy / setting).exists():
                    (group / setting).write_text((hierarchy / setting).read_text())
        yield name
    finally:
        left = remove_cgroups([name])
        assert not left, left


@contextmanager
def _folders_of_its_own() -> Iterator[None]:
    """Remove the folders that a kubelet makes at fixed places, where they were not before and
    are empty afterwards."""
    made = [folder for folder in FIXED_FOLDERS if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            (folder / "kubelet.sock").unlink(missing_ok=True)
            with suppress(OSError):  # not made, or somebody else's files are in it by now
                folder.rmdir()


def _child(cluster: DevCluster, zone: Zone, program: Path, changes: Mapping[str, Any]) -> Child:
    assert zone.network is not None
    folder = zone.folder / "kubelet"
    folder.mkdir()
    plane = cluster.control_plane
    # A node may not be 127.0.0.1 to a kubelet; the bridge's own address is reached by the
    # API server and by Pods, and by nobody outside this machine.
    address = str(zone.network.gateway)
    serving = plane.authority.issue("kubelet-serving", NODE, ips=[address])
    client = plane.authority.issue(
        "kubelet-client", f"system:node:{NODE}", organizations=["system:nodes"]
    )
    kubeconfig = write_kubeconfig(
        folder / "kubeconfig",
        server=plane.url,
        ca_pem=plane.authority.pem,
        user=NODE,
        client=client,
    )
    settings = folder / "config.yaml"
    content = _configuration(folder, zone, address, serving, plane.authority.cert)
    settings.write_text(yaml.safe_dump({**content, **changes}))
    return Child(
        "kubelet",
        [
            program,
            f"--config={settings}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NODE}",
            f"--node-ip={address}",
            f"--root-dir={folder / 'root'}",
            f"--cert-dir={folder / 'pki'}",
            "--v=2",
        ],
        log=cluster.state.logs / "kubelet.log",
        on_start=lambda child: cluster.state.add_process(child.name, child.pid),
    )


def _configuration(
    folder: Path, zone: Zone, address: str, serving: KeyPair, client_ca: Path
) -> dict[str, Any]:
    """KubeletConfiguration: upstream's defaults but for what this machine and the absence of
    an init system demand."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": pick_port(what="the kubelet", address=address),
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": str(serving.cert),
        "tlsPrivateKeyFile": str(serving.key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(client_ca)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{zone.places.socket}",
        "volumePluginDir": str(folder / "plugins"),
        "podLogsDir": str(folder / "logs"),
        # No systemd here, and control groups of version 1.
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        # The cluster shares the machine: it takes none of it for itself.
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        # Without CAP_SYS_RESOURCE it could not lower its own.
        "oomScoreAdj": 0,
        # Its chains in the machine's firewall would outlive it.
        "makeIPTablesUtilChains": False,
        # A full disk elsewhere on the machine must not evict Pods or delete images.
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
    }


def _remove_links(folder: Path) -> None:
    """Remove the links to logs below `folder`."""
    if LOG_LINKS.is_dir():
        for link in LOG_LINKS.iterdir():
            if link.is_symlink() and link.readlink().is_relative_to(folder):
                link.unlink(missing_ok=True)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
