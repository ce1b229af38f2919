"""A cell that its pool empties is to Kubernetes a node that is shut down gracefully."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.kube import Kube, Object, condition, deployment, is_ready
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def pool_drain(kube: Kube, cell: str, *options: str) -> None:
    """As an operator does it, on the zone's machine."""
    zone = cell.rsplit("-", 1)[0]
    state = kube.kubeconfig.parent / "run" / "zones" / zone / "pool"
    command = [sys.executable, "-m", "vknode", "pool-drain", "--state-dir", str(state)]
    subprocess.run([*command, *options, cell], check=True, timeout=120)


def test_pods_of_a_drained_cell_end_in_order_and_come_elsewhere(kube: Kube) -> None:
    web = deployment("web", 2, grace=60)
    (main,) = web["spec"]["template"]["spec"]["containers"]
    main["command"] = [
        "sh",
        "-c",
        "trap 'exit 7' TERM; touch /tmp/set; while :; do sleep 0.1; done",
    ]
    main["readinessProbe"] = {  # before, the signal would go unheard
        "exec": {"command": ["test", "-e", "/tmp/set"]},
        "periodSeconds": 1,
        "timeoutSeconds": 30,
    }
    main["lifecycle"] = {"preStop": {"exec": {"command": ["sh", "-c", "echo bye >/proc/1/fd/1"]}}}
    kube.apply(web)
    victim = kube.ready_pods("app=web", 2)[0]
    name, node = victim["metadata"]["name"], victim["spec"]["nodeName"]
    with kube.popen("logs", "-f", name, stdout=subprocess.PIPE) as follower:
        pool_drain(kube, node)
        try:
            ended = kube.wait_phase(name, "Failed")
            assert follower.communicate(timeout=60)[0] == b"bye\n"
            assert ended["status"]["reason"] == "Terminated"
            assert "imminent node shutdown" in ended["status"]["message"]
            assert condition(ended, "DisruptionTarget") == "True"
            (state,) = ended["status"]["containerStatuses"]
            assert state["state"]["terminated"]["exitCode"] == 7
            until(lambda: kube.json("get", "node", node)["spec"].get("unschedulable"), "cordoned")

            def replaced() -> list[Object] | None:
                pods = [pod for pod in kube.items("pods", "app=web") if is_ready(pod)]
                return pods if len(pods) == 2 else None

            pods = until(replaced, "two ready Pods again", timeout=90)
            assert node not in {pod["spec"]["nodeName"] for pod in pods}
        finally:
            pool_drain(kube, node, "--undo")

    def open_again() -> bool:
        found = kube.get("node", node)
        return found is not None and not found["spec"].get("unschedulable")

    until(open_again, "the node takes Pods again")
