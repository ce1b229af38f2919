"""The agent lives through a bad API server: nothing restarted, leaked, doubled or lost.

Sandboxes are simulated; the faults come from the proxy between the agent and the real
API server.
"""

from __future__ import annotations

import time

import pytest

from tests.faults.census import Census
from tests.support.fixtures import Running
from tests.support.kube import Kube, deployment, simple_pod
from tests.support.until import until

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def healed(sim: Running) -> object:
    """Every test starts and ends with an API server that works."""
    proxy = sim.cluster.proxy
    assert proxy is not None
    yield
    proxy.clear()
    sim.thread.run(proxy.mend())
    sim.thread.run(sim.cluster.wait_nodes_ready())


@pytest.mark.parametrize("how", ["reset", "clean"])
def test_dropped_watches_are_resumed(sim: Running, sim_kube: Kube, how: str) -> None:
    assert sim.cluster.proxy is not None
    sim_kube.apply(deployment("steady", 4))
    sim_kube.ready_pods("app=steady", 4)
    census = Census(sim)
    for _ in range(3):
        assert sim.thread.run(sim.cluster.proxy.drop_watches(how)) >= 1
        sim_kube.apply(simple_pod("late"))
        sim_kube.wait_phase("late", "Running")
        sim_kube.out("delete", "pod", "late")
    census.same_sandboxes(sim_kube)


def test_expired_watch_means_a_new_list(sim: Running, sim_kube: Kube) -> None:
    assert sim.cluster.proxy is not None
    sim_kube.apply(deployment("steady", 4))
    sim_kube.ready_pods("app=steady", 4)
    census = Census(sim)
    assert sim.thread.run(sim.cluster.proxy.expire_watches()) >= 1
    # The resume is refused as well: only a list can help.
    sim.cluster.proxy.fail(410, path="/pods", watch=True, count=1)
    sim_kube.apply(simple_pod("late"))
    sim_kube.wait_phase("late", "Running")
    census.same_sandboxes(sim_kube)


def test_deletion_missed_while_the_watch_was_gone(sim: Running, sim_kube: Kube) -> None:
    """A Pod force-deleted during an outage leaves no sandbox behind."""
    proxy = sim.cluster.proxy
    assert proxy is not None
    sim_kube.apply(simple_pod("lost"), simple_pod("kept"))
    uid = sim_kube.wait_phase("lost", "Running")["metadata"]["uid"]
    kept = sim_kube.wait_phase("kept", "Running")["metadata"]["uid"]
    sim.thread.run(proxy.cut())
    sim_kube.out("delete", "pod", "lost", "--force", "--grace-period=0")
    # Whatever the agent asks first after the outage, the watch cannot be resumed.
    proxy.fail(410, path="/pods", watch=True, count=1)
    sim.thread.run(proxy.mend())
    census = Census(sim)
    until(lambda: uid not in census.sandboxes(), "the sandbox of the lost Pod gone", timeout=60)
    assert kept in census.sandboxes()


@pytest.mark.parametrize("status", [429, 500])
def test_refused_writes_are_made_again(sim: Running, sim_kube: Kube, status: int) -> None:
    proxy = sim.cluster.proxy
    assert proxy is not None
    rule = proxy.fail(status, path="/status", retry_after=1 if status == 429 else None)
    sim_kube.apply(deployment("stubborn", 6))
    until(lambda: rule.hits >= 10, "ten writes refused")
    proxy.clear()
    # No retry waits longer than 7.5 s, however often it was refused.
    pods = sim_kube.ready_pods("app=stubborn", 6, timeout=40)
    assert all(p["status"]["containerStatuses"][0]["restartCount"] == 0 for p in pods)


def test_answers_that_got_lost_are_not_done_twice(sim: Running, sim_kube: Kube) -> None:
    """The API server did the work, the agent saw an error: replaying must be harmless."""
    assert sim.cluster.proxy is not None
    sim.cluster.proxy.fail(500, method="DELETE", path="/pods/", count=3, lost_answer=True)
    sim.cluster.proxy.fail(500, method="PATCH", path="/status", count=6, lost_answer=True)
    sim_kube.apply(simple_pod("echoed"))
    sim_kube.wait_phase("echoed", "Running")
    sim_kube.out("delete", "pod", "echoed", timeout=60)
    sim_kube.gone("pod", "echoed")


@pytest.mark.timeout(240)
def test_api_server_away_for_30_seconds(sim: Running, sim_kube: Kube) -> None:
    proxy = sim.cluster.proxy
    assert proxy is not None
    sim_kube.apply(deployment("steady", 6))
    sim_kube.ready_pods("app=steady", 6)
    census = Census(sim)
    not_ready: set[str] = set()
    sim.thread.run(proxy.cut(seconds=30))
    ends = time.monotonic() + 45
    while time.monotonic() < ends:
        not_ready |= census.nodes_not_ready()
        time.sleep(0.5)
    # 30 s are below the node monitor's grace period: no node may have been called NotReady.
    assert not_ready == set()
    sim_kube.apply(simple_pod("after"))
    sim_kube.wait_phase("after", "Running")
    census.same_sandboxes(sim_kube)
