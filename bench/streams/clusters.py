"""The two clusters that are measured: one with vknode, one with the real kubelet.

Both on this machine's containerd with the same control plane, one after the other. Each can
have an API server that passes WebSockets on to nodes (`websockets`), or one that speaks
SPDY/3.1 to them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.streams.site import Site
from tests.clusters import running
from tests.support.realkubelet import PROGRAMS, real_kubelet
from vknode.devcluster.cluster import DevCluster
from vknode.devcluster.programs.provide import require

FEATURE = "ExtendWebSocketsToKubelet"
#: A whole log in one file, as a node has it that never rotates.
LOG_SIZE = "4Gi"


@contextmanager
def vknode(*, websockets: bool) -> Iterator[Site]:
    def make(folder: Path) -> DevCluster:
        return DevCluster(
            folder,
            runtime="cri",
            zones=1,
            cells_per_zone=1,
            apiserver_features={FEATURE: websockets},
            pool_flags=("--container-log-max-size", LOG_SIZE),
        )

    with running(make) as (cluster, _), _folder() as folder:
        assert cluster.agent is not None
        yield Site(cluster, folder, "", cluster.agent.pid)


@contextmanager
def kubelet(*, websockets: bool) -> Iterator[Site]:
    with (
        real_kubelet(
            require(PROGRAMS),
            config={"containerLogMaxSize": LOG_SIZE},
            apiserver_features={FEATURE: websockets},
        ) as node,
        _folder() as folder,
    ):
        yield Site(node.running.cluster, folder, "kubelet_", node.child.pid)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vkn-bench-") as folder:
        yield Path(folder)
