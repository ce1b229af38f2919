"""The peer that our nodes are compared with: the real kubelet, and what it may not leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fixtures import have
from tests.support.kube import simple_pod
from tests.support.realkubelet import KERNEL_SETTINGS, LOG_LINKS, PROGRAMS, real_kubelet
from vknode.devcluster import leftovers

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def test_the_real_kubelet_runs_a_pod_and_leaves_nothing() -> None:
    settings = {path: path.read_text() for path in KERNEL_SETTINGS if path.exists()}
    with real_kubelet(have(PROGRAMS)) as kubelet:
        cluster, kube = kubelet.running.cluster, kubelet.running.kube
        kube.apply(simple_pod("peer", ["sh", "-c", "echo hello; sleep 3600"]))
        pod = kube.wait_phase("peer", "Running")
        assert pod["spec"]["nodeName"] == kubelet.node
        assert kube.out("logs", "peer") == "hello\n"
        groups = _groups(pod["metadata"]["uid"])
        assert groups, "the Pod has a control group of its own"
        folder = cluster.state.path
        network = cluster.zones["az1"].network
        assert network is not None and (Path("/sys/class/net") / network.bridge).exists()
    after = leftovers.take(folder)
    assert not after.processes and not after.mounts and not after.files
    assert not (Path("/sys/class/net") / network.bridge).exists()
    assert not [group for group in groups if group.exists()]
    assert {path: path.read_text() for path in settings} == settings
    links = LOG_LINKS.iterdir() if LOG_LINKS.exists() else ()
    assert not [one for one in links if one.readlink().is_relative_to(folder)]


def _groups(uid: str) -> list[Path]:
    """The Pod's control groups, below the kubelet's own ones."""
    root = Path("/sys/fs/cgroup")
    own = [*root.glob("vknode-kubelet-*"), *root.glob("*/vknode-kubelet-*")]
    return [one for group in own for one in group.rglob(f"*{uid}*")]
