"""The two kinds of node that scenarios are played on."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clusters import ClusterThread
from tests.scenarios.batch import Target
from tests.support.fixtures import CRI, Running, started
from tests.support.kube import Kube
from tests.support.realkubelet import PROGRAMS, real_kubelet
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE
from vknode.devcluster.programs.provide import require

#: The zone whose pool is killed; scenarios with that fault select it by its label.
ZONE = "az1"


class Opened:
    """A target, and a loop in a thread on which to play."""

    def __init__(self, target: Target, thread: ClusterThread) -> None:
        self.target = target
        self._thread = thread

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Play on the target's loop and wait for it, however long it takes."""
        self._thread.run(work, timeout=3600)


def vknode(running: Running) -> Target:
    """A development cluster with pools and agent; its levers work on the cluster's loop."""
    cluster = running.cluster
    return Target(
        "vknode",
        running.kube,
        {
            "agent": (cluster.kill_agent, cluster.start_agent),
            "pool": (lambda: cluster.kill_pool(ZONE), lambda: cluster.start_pool(ZONE)),
        },
    )


@contextmanager
def opened(name: str, kubeconfig: Path | None = None) -> Iterator[Opened]:
    """Start the cluster of a target, or use the one of `kubeconfig` (without faults then).

    Raises ProgramsMissing and what DevCluster.start raises."""
    if kubeconfig is not None:
        kube = Kube(require(("kubectl",))["kubectl"], kubeconfig.absolute(), "default")
        thread = ClusterThread()
        try:
            yield Opened(Target(name, kube, {}), thread)
        finally:
            thread.close()
    elif name == "kubelet":
        with real_kubelet(require(PROGRAMS)) as kubelet:
            running = kubelet.running
            yield Opened(Target(name, running.kube, {}), running.thread)
    else:
        require(CONTROL_PLANE + CONTAINERD)
        with started(**CRI) as running:
            yield Opened(vknode(running), running.thread)
