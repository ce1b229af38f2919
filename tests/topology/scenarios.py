"""What Kubernetes does with several nodes, each tried as a user would and judged by the
outcome alone. Run against the same simulated pool shown in two ways."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.kube import Kube, Object, deployment, is_ready
from tests.support.until import until

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
#: Seconds for what works to do so on a busy machine.
PATIENCE = 90.0

QUICK = [
    {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute"}
    | {"tolerationSeconds": 2}
    for why in ("not-ready", "unreachable")
]


@dataclass
class World:
    """A cluster and the two things that can be done to one failure domain of it."""

    kube: Kube
    domains: int
    # Kill the zone of the first node and wait until its nodes are NotReady.
    lose_domain: Callable[[], None]
    restore_domain: Callable[[], None]

    def ready(self, app: str) -> list[Object]:
        return [p for p in self.kube.items("pods", f"app={app}") if is_ready(p)]

    def reaches(self, app: str, count: int, seconds: float) -> bool:
        """Whether so many Pods get ready in the time."""
        give_up = time.monotonic() + seconds
        while len(self.ready(app)) != count:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.2)
        return True

    def deploy(self, app: str, replicas: int, **spec: Any) -> bool:
        """Whether they get ready: a busy machine is waited for, a Pod for which there is no node
        is not."""
        self.kube.apply(deployment(app, replicas, tolerations=QUICK, **spec))
        give_up = time.monotonic() + PATIENCE
        without = self.without_node(app)
        while time.monotonic() < give_up:
            done = self.kube.run(
                "rollout", "status", f"deployment/{app}", "--timeout=10s", check=False
            )
            if done.returncode == 0:
                return True
            before, without = without, self.without_node(app)
            if before & without:
                return False
        return False

    def without_node(self, app: str) -> set[str]:
        """The Pods that the scheduler has found no node for, by their UIDs."""
        return {
            pod["metadata"]["uid"]
            for pod in self.kube.items("pods", f"app={app}")
            for one in pod["status"].get("conditions", ())
            if one["type"] == "PodScheduled" and one.get("reason") == "Unschedulable"
        }


def a_deployment_runs(world: World) -> bool:
    return world.deploy("plain", 6)


def zone_spread(world: World) -> bool:
    constraint = {
        "maxSkew": 1,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "spread"}},
    }
    if not world.deploy("spread", 6, topologySpreadConstraints=[constraint]):
        return False
    zones = {
        n["metadata"]["name"]: n["metadata"]["labels"][ZONE] for n in world.kube.items("nodes")
    }
    used = [zones[p["spec"]["nodeName"]] for p in world.ready("spread")]
    return sorted(used.count(z) for z in set(used)) == [2, 2, 2]


def anti_affinity(world: World) -> bool:
    term = {"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "apart"}}}
    rule = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return world.deploy("apart", 3, affinity=rule)


def drain_with_budget(world: World) -> bool:
    world.deploy("guarded", 2)
    world.kube.apply(
        json.dumps(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {"name": "guarded"},
                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
            }
        )
    )
    node = world.ready("guarded")[0]["spec"]["nodeName"]
    try:
        done = world.kube.run(
            "drain", node, "--pod-selector=app=guarded", "--timeout=45s", check=False
        )
        moved = {p["spec"]["nodeName"] for p in world.ready("guarded")}
        return done.returncode == 0 and node not in moved and world.reaches("guarded", 2, PATIENCE)
    finally:
        world.kube.out("uncordon", node)


def maintenance(world: World) -> bool:
    node = world.kube.items("nodes")[0]["metadata"]["name"]
    world.kube.out("cordon", node)
    try:
        return world.deploy("elsewhere", 2)
    finally:
        world.kube.out("uncordon", node)


def one_daemon_per_domain(world: World) -> bool:
    body = deployment("daemon", 1)
    body["kind"] = "DaemonSet"
    del body["spec"]["replicas"]
    world.kube.apply(body)
    done = world.kube.run("rollout", "status", "ds/daemon", f"--timeout={PATIENCE:g}s", check=False)
    return done.returncode == 0 and len(world.ready("daemon")) == world.domains


def survives_a_dead_zone(world: World) -> bool:
    """Some replica is always ready, and the lost ones are replaced elsewhere."""
    constraint = {
        "maxSkew": 1,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "lasting"}},
    }
    world.deploy("lasting", 6, topologySpreadConstraints=[constraint])
    world.lose_domain()
    try:
        if not world.ready("lasting"):
            return False
        lost = {n["metadata"]["name"] for n in world.kube.items("nodes") if not is_ready(n)}
        until(
            lambda: sum(p["spec"]["nodeName"] not in lost for p in world.ready("lasting")) == 6,
            "six replicas on what is left",
            timeout=PATIENCE,
        )
        return True
    except AssertionError:
        return False
    finally:
        world.restore_domain()


SCENARIOS: dict[str, Callable[[World], bool]] = {
    "a Deployment runs": a_deployment_runs,
    "zone spread with `DoNotSchedule` really spreads": zone_spread,
    "three replicas with required host anti-affinity start": anti_affinity,
    "drain of a node within a PodDisruptionBudget": drain_with_budget,
    "a cordoned node leaves room elsewhere": maintenance,
    "a DaemonSet has a Pod in every failure domain": one_daemon_per_domain,
    "a dead zone: service goes on, its Pods are replaced": survives_a_dead_zone,
}
