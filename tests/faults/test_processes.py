"""Any process may die at any moment: nothing is restarted, leaked or doubled, and only the
nodes that really are down are called NotReady. Simulated sandboxes, real Kubernetes."""

from __future__ import annotations

import threading
import time

import pytest

from tests.faults.census import Census
from tests.support.agents import agent_with
from tests.support.fixtures import Running
from tests.support.kube import Kube, deployment, simple_pod
from tests.support.until import until

pytestmark = pytest.mark.cluster


def test_agent_killed_amid_creates_and_deletes(sim: Running, sim_kube: Kube) -> None:
    cluster, thread = sim.cluster, sim.thread
    sim_kube.apply(deployment("steady", 4), deployment("moving", 10))
    sim_kube.ready_pods("app=steady", 4)
    sim_kube.ready_pods("app=moving", 10)
    census = Census(sim)
    for replicas in (30, 4, 20):
        sim_kube.out("scale", "deployment/moving", f"--replicas={replicas}")
        until(
            lambda replicas=replicas: len(sim_kube.items("pods", "app=moving")) != 10,  # type: ignore[misc]  # mypy cannot infer lambda defaults
            "the change begun",
            every=0.05,
        )
        thread.run(cluster.kill_agent())
        thread.run(cluster.start_agent())
        sim_kube.ready_pods("app=moving", replicas, timeout=90)
    assert census.nodes_not_ready() == set()
    census.same_sandboxes(sim_kube)


def test_agent_away_for_a_while_leaves_nodes_ready(sim: Running, sim_kube: Kube) -> None:
    cluster, thread = sim.cluster, sim.thread
    sim_kube.apply(deployment("steady", 4))
    sim_kube.ready_pods("app=steady", 4)
    census = Census(sim)
    thread.run(cluster.kill_agent())
    sim_kube.apply(simple_pod("meanwhile"))
    not_ready: set[str] = set()
    ends = time.monotonic() + 12
    while time.monotonic() < ends:
        not_ready |= census.nodes_not_ready()
        time.sleep(0.5)
    thread.run(cluster.start_agent())
    sim_kube.wait_phase("meanwhile", "Running", timeout=60)
    assert not_ready | census.nodes_not_ready() == set()
    census.same_sandboxes(sim_kube)


def test_pod_deleted_while_the_agent_is_away(sim: Running, sim_kube: Kube) -> None:
    """Gracefully and by force: both leave no sandbox once the agent is back."""
    cluster, thread = sim.cluster, sim.thread
    sim_kube.apply(simple_pod("asked"), simple_pod("forced"), simple_pod("kept"))
    uids = {n: sim_kube.wait_phase(n, "Running")["metadata"]["uid"] for n in ("asked", "forced")}
    sim_kube.wait_phase("kept", "Running")
    thread.run(cluster.kill_agent())
    sim_kube.out("delete", "pod", "asked", "--wait=false")
    sim_kube.out("delete", "pod", "forced", "--force", "--grace-period=0")
    thread.run(cluster.start_agent())
    sim_kube.gone("pod", "asked", timeout=60)
    census = Census(sim)
    until(
        lambda: not set(uids.values()) & census.sandboxes().keys(),
        "both sandboxes gone",
        timeout=60,
    )
    census.none_leaked(sim_kube)


def test_a_pool_that_disappears_takes_only_its_nodes(sim: Running, sim_kube: Kube) -> None:
    cluster, thread = sim.cluster, sim.thread
    census = Census(sim)
    own = set(cluster.zones["az2"].cells)
    thread.run(cluster.kill_pool("az2"))
    try:
        killed = time.monotonic()
        seen: set[str] = set()
        while not seen >= own and time.monotonic() - killed < 90:
            seen |= census.nodes_not_ready()
        assert seen == own
        # The rest works on: new Pods start at once elsewhere.
        sim_kube.apply(deployment("elsewhere", 4))
        pods = sim_kube.ready_pods("app=elsewhere", 4, timeout=60)
        assert not {p["spec"]["nodeName"] for p in pods} & own
        assert census.nodes_not_ready() == own
    finally:
        thread.run(cluster.start_pool("az2"))
    thread.run(cluster.wait_nodes_ready())


def test_a_short_break_of_a_pool_is_not_shown(sim: Running, sim_kube: Kube) -> None:
    """Killed and back within the hysteresis: no node was ever called NotReady."""
    cluster, thread = sim.cluster, sim.thread
    census = Census(sim)
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.update(census.nodes_not_ready())

    # On a busy machine a pool's start may take longer than the 10 s that are usual.
    with agent_with(sim, "pool", {"unreachableAfterSeconds": 60}):
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            thread.run(cluster.kill_pool("az3"))
            thread.run(cluster.start_pool("az3"))
            sim_kube.apply(simple_pod("after", nodeSelector={"topology.kubernetes.io/zone": "az3"}))
            sim_kube.wait_phase("after", "Running")
            time.sleep(5)
        finally:
            stop.set()
            watcher.join()
        assert seen == set()


@pytest.mark.timeout(240)
def test_200_pods_at_once(sim: Running, sim_kube: Kube) -> None:
    census = Census(sim)
    sim_kube.apply(deployment("crowd", 200))
    pods = sim_kube.ready_pods("app=crowd", 200, timeout=120)
    assert len({p["status"]["podIP"] for p in pods}) == 200
    assert all(p["status"]["containerStatuses"][0]["restartCount"] == 0 for p in pods)
    census.none_leaked(sim_kube)
    sim_kube.out("delete", "deployment/crowd", "--wait=false")
    until(lambda: not sim_kube.items("pods"), "all 200 gone", timeout=90)
    census.none_leaked(sim_kube)
