"""The same on real containers: whatever dies around them, they run on and are found again."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.census import Census
from tests.support.fixtures import Running
from tests.support.kube import Kube, deployment, simple_pod
from tests.support.until import until
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.wire import cri_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

AZ1 = {"topology.kubernetes.io/zone": "az1"}


def test_pool_killed_and_restarted_adopts_its_containers(cri: Running, kube: Kube) -> None:
    cluster, thread = cri.cluster, cri.thread
    kube.apply(deployment("steady", 2, nodeSelector=AZ1))
    kube.ready_pods("app=steady", 2)
    census = Census(cri)
    thread.run(cluster.kill_pool("az1"))
    # Bound while there is no pool: starts when it is back.
    kube.apply(simple_pod("patient", nodeSelector=AZ1))
    thread.run(cluster.start_pool("az1"))
    kube.wait_phase("patient", "Running", timeout=90)
    census.same_sandboxes(kube)
    name = kube.items("pods", "app=steady")[0]["metadata"]["name"]
    assert kube.out("exec", name, "--", "echo", "still here") == "still here\n"


def test_container_that_ended_while_its_pool_was_away(cri: Running, kube: Kube) -> None:
    """Its exit code, and the restart it needs, are not lost."""
    cluster, thread = cri.cluster, cri.thread
    ends = ["sh", "-c", "while [ ! -e /stop/x ]; do sleep 0.1; done; rm /stop/x; exit 9"]
    kube.apply(
        simple_pod(
            "ending",
            ends,
            nodeSelector=AZ1,
            volumes=[{"name": "stop", "emptyDir": {}}],
            container={"volumeMounts": [{"name": "stop", "mountPath": "/stop"}]},
        )
    )
    kube.wait_phase("ending", "Running")
    # The trigger outlives the pool: a process of the container, started before.
    kube.out("exec", "ending", "--", "sh", "-c", "(sleep 2; touch /stop/x) >/dev/null 2>&1 &")
    thread.run(cluster.kill_pool("az1"))

    def ended() -> bool:
        # Seen by the runtime itself, since the pool is not there to tell.
        return cri_exited(cri, kube.pod("ending")["metadata"]["uid"])

    until(ended, "the container ended")
    thread.run(cluster.start_pool("az1"))

    def restarted() -> bool:
        status = kube.pod("ending")["status"]["containerStatuses"][0]
        return bool(status["restartCount"] == 1 and "running" in status["state"])

    until(restarted, "one restart", show=lambda: kube.describe("ending"))
    status = kube.pod("ending")["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 9


def cri_exited(cri: Running, uid: str) -> bool:
    """Whether the runtime has an ended container of the sandbox."""

    async def look() -> bool:
        client = CriClient(str(cri.cluster.zones["az1"].places.socket))
        try:
            listed = await client.runtime.ListContainers(cri_pb2.ListContainersRequest())
        finally:
            await client.close()
        return any(
            c.labels.get("io.kubernetes.pod.uid") == uid and c.state == cri_pb2.CONTAINER_EXITED
            for c in listed.containers
        )

    return asyncio.run(look())


def test_agent_killed_while_containers_start_and_end(cri: Running, kube: Kube) -> None:
    cluster, thread = cri.cluster, cri.thread
    kube.apply(deployment("steady", 3), deployment("moving", 3))
    kube.ready_pods("app=steady", 3)
    kube.ready_pods("app=moving", 3)
    census = Census(cri)
    kube.out("scale", "deployment/moving", "--replicas=9")
    until(lambda: len(kube.items("pods", "app=moving")) > 3, "the change begun", every=0.05)
    thread.run(cluster.kill_agent())
    thread.run(cluster.start_agent())
    kube.ready_pods("app=moving", 9, timeout=90)
    kube.out("scale", "deployment/moving", "--replicas=1")
    thread.run(cluster.kill_agent())
    thread.run(cluster.start_agent())
    kube.ready_pods("app=moving", 1, timeout=90)
    census.same_sandboxes(kube)


@pytest.mark.timeout(240)
def test_zone_without_power_comes_back_empty_handed(cri: Running, kube: Kube) -> None:
    """containerd, pool and containers of a zone die at once: only its nodes go NotReady, the
    others replace its Pods, and it takes Pods again."""
    cluster, thread = cri.cluster, cri.thread
    census = Census(cri)
    own = set(cluster.zones["az3"].cells)
    quick = [
        {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute"}
        | {"tolerationSeconds": 2}
        for why in ("not-ready", "unreachable")
    ]
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "nodeTaintsPolicy": "Honor",
            "labelSelector": {"matchLabels": {"app": "spread"}},
        }
    ]
    kube.apply(deployment("spread", 6, tolerations=quick, topologySpreadConstraints=spread))
    kube.ready_pods("app=spread", 6)
    thread.run(cluster.kill_zone("az3"))
    try:
        until(lambda: census.nodes_not_ready() == own, "exactly its nodes NotReady", timeout=90)
        until(
            lambda: (
                sum(
                    p["spec"]["nodeName"] not in own and "deletionTimestamp" not in p["metadata"]
                    for p in kube.items("pods", "app=spread")
                )
                == 6
            ),
            "six Pods in the other zones",
            timeout=90,
        )
        assert census.nodes_not_ready() == own
    finally:
        thread.run(cluster.restore_zone("az3"))
    thread.run(cluster.wait_nodes_ready())
    pods = kube.ready_pods("app=spread", 6, timeout=90)
    assert not {p["spec"]["nodeName"] for p in pods} & own
    kube.apply(simple_pod("again", nodeSelector={"topology.kubernetes.io/zone": "az3"}))
    kube.wait_phase("again", "Running", timeout=90)
    census.none_leaked(kube)
