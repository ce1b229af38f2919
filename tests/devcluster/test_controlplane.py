"""The real control plane: what it serves, to whom, and that it leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ControlPlaneHandle
from vknode.devcluster.cluster import DevCluster
from vknode.devcluster.programs.catalog import kubernetes_version

pytestmark = pytest.mark.cluster


def test_serves_the_pinned_release(control_plane: ControlPlaneHandle) -> None:
    said = json.loads(control_plane.kubectl("version", "-o", "json"))
    assert said["serverVersion"]["gitVersion"] == kubernetes_version()


def test_scheduler_and_controllers_work(control_plane: ControlPlaneHandle, namespace: str) -> None:
    kubectl = control_plane.kubectl
    kubectl("create", "deployment", "web", "--image=none", "--replicas=2", "-n", namespace)
    # The Deployment and ReplicaSet controllers make Pods, and the scheduler says why none fits.
    of_web = ("wait", "pod", "-l", "app=web", "-n", namespace, "--timeout=120s")
    for what in ("create", "jsonpath={.status.conditions[0].reason}=Unschedulable"):
        kubectl(*of_web, f"--for={what}", timeout=150)


def test_authorizes_by_node_and_rbac(control_plane: ControlPlaneHandle) -> None:
    # A stranger may do nothing; a node may not read a Secret that no Pod of its own uses.
    for who in (["--as=stranger"], ["--as=system:node:n1", "--as-group=system:nodes"]):
        done = control_plane.kubectl.run("get", "secret", "x", *who, check=False)
        assert done.returncode != 0
        assert b"Forbidden" in done.stderr


def test_keys_are_private(control_plane: ControlPlaneHandle) -> None:
    state = control_plane.cluster.state.path
    assert state.stat().st_mode & 0o077 == 0
    for path in (control_plane.kubeconfig, control_plane.admin.key):
        assert path.stat().st_mode & 0o077 == 0


async def test_leaves_nothing_but_its_logs(
    control_plane_programs: dict[str, Path], short_path: Path
) -> None:
    cluster = DevCluster(short_path, zones=0, agent=False, programs=control_plane_programs)
    await cluster.start()
    pids = [child.pid for child in cluster.control_plane.children.values()]
    assert len(pids) == 4
    await cluster.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(path.name for path in short_path.iterdir()) == ["lock", "logs"]
    assert not cluster.crashes
