"""The two clusters that the same specs are run against: the real kubelet, and vknode.

Same control plane, same containerd, same images, same machine; only the node agent differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import ClusterThread
from tests.conformance.registry import Registry
from tests.support.fixtures import started
from tests.support.realkubelet import PROGRAMS as KUBELET_PROGRAMS
from tests.support.realkubelet import real_kubelet
from vknode.devcluster.imagelayout import Archive
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE

KUBELET = "kubelet"
VKNODE = "vknode"
TARGETS = (KUBELET, VKNODE)

PROGRAMS = {KUBELET: KUBELET_PROGRAMS, VKNODE: (*CONTROL_PLANE, *CONTAINERD)}

#: Two nodes, for the specs that want more than one, each on a containerd of its own.
VKNODE_ZONES = 2
#: Some specs ask for ephemeral storage, which a cell only has where it is told.
CELL_CAPACITY = "cpu=8,memory=16Gi,pods=110,ephemeral-storage=40Gi"
#: What a kubelet allows everybody, and a pool and an agent only where they are told to.
POOL_FLAGS = ("--allow-host-path=/", "--allow-privileged", "--allow-host-namespaces")
PRIVILEGES = {
    "namespaces": ["*"],
    "allow": {
        "hostPath": ["/"],
        "hostNetwork": True,
        "hostPID": True,
        "hostIPC": True,
        "privileged": True,
        "capabilities": ["ALL"],
        "unconfined": True,
        "unconfinedByDefault": True,
    },
}
#: The registry that the tests' images are named after.
REGISTRY = "registry.k8s.io"


@dataclass(frozen=True)
class Target:
    """A cluster that is ready for the suite. `logs` is the folder of its children's logs."""

    name: str
    kubeconfig: Path
    kubectl: Path
    logs: Path


@contextmanager
def target(name: str, programs: Mapping[str, Path], images: Archive) -> Iterator[Target]:
    """The named cluster, running; gone without a trace afterwards."""
    with _registry(images) as url:
        mirrors = {REGISTRY: url}
        if name == KUBELET:
            with real_kubelet(programs, more_images=[images], mirrors=mirrors) as kubelet:
                cluster = kubelet.running.cluster
                yield Target(name, cluster.kubeconfig, cluster.kubectl.program, cluster.state.logs)
            return
        with started(
            runtime="cri",
            zones=VKNODE_ZONES,
            cells_per_zone=1,
            cell_capacity=CELL_CAPACITY,
            more_images=[images],
            mirrors=mirrors,
            pool_flags=POOL_FLAGS,
            agent_config={"privileges": [PRIVILEGES]},
            programs=programs,
        ) as running:
            cluster = running.cluster
            yield Target(name, cluster.kubeconfig, cluster.kubectl.program, cluster.state.logs)


@contextmanager
def _registry(images: Archive) -> Iterator[str]:
    registry = Registry(images.path, REGISTRY)
    thread = ClusterThread()
    try:
        yield thread.run(registry.start())
    finally:
        thread.run(registry.stop())
        thread.close()
