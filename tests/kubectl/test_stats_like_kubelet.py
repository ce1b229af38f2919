"""Statistics field by field beside those of the real kubelet, for the same Pod on one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fixtures import Running, have, own_namespace
from tests.support.kube import Kube, Object, simple_pod
from tests.support.realkubelet import PROGRAMS, real_kubelet
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

# What a kubelet tells that we do not, with the reason.
OURS_LACK = {
    # Of the machine's own services, file systems and kernel: a cell is not a machine of ours.
    "node.systemContainers",
    "node.rlimit",
    "node.runtime",
    # Not in the pool contract: swap, pressure (PSI), inodes, the file systems' sizes, volumes.
    "swap",
    "io",
    "psi",
    "inodes",
    "inodesFree",
    "inodesUsed",
    "pods.volume",
    "pods.containers.rootfs.availableBytes",
    "pods.containers.rootfs.capacityBytes",
    "pods.containers.logs.availableBytes",
    "pods.containers.logs.capacityBytes",
    "pods.ephemeral-storage.availableBytes",
    "pods.ephemeral-storage.capacityBytes",
    # Where the cell announces ephemeral-storage; those of the development cluster do not.
    "node.fs.availableBytes",
    "node.fs.capacityBytes",
    # Errors of network interfaces.
    "rxErrors",
    "txErrors",
}
# What a kubelet has from cAdvisor, which does not know the sandboxes of a test's own containerd.
NOT_HERE = ("pods.network.", "pods.process_stats.")
# As we are, for the answers where something is switched off.
SWITCHED_OFF = {
    "enableSystemLogHandler": False,
    "enableProfilingHandler": False,
    "enableDebugFlagsHandler": False,
}
#: Nanoseconds a second of a container that works as hard as 100m let it: not less, not more.
A_TENTH = 20_000_000, 200_000_000
METRICS_WE_LACK = {
    "node_swap_usage_bytes",
    "pod_swap_usage_bytes",
    "container_swap_usage_bytes",
    "container_swap_limit_bytes",
}


def probed() -> Object:
    # It has its turn beside what the container does within the same limit.
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 30}
    container = {
        "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        "readinessProbe": probe,
        "livenessProbe": probe,
        "startupProbe": probe,
    }
    command = ("sh", "-c", "while :; do :; done")
    return simple_pod("web", command, container=container)


def successes(text: str) -> set[str]:
    """The types of the Pod's probes that have succeeded."""
    return {
        sample.labels["probe_type"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "prober_probe_total"
        and sample.labels["pod"] == "web"
        and sample.labels["result"] == "successful"
    }


def is_measured(pod: Any) -> bool:
    return bool(
        pod["containers"]
        # Not of the moment in which it came up: then it has hardly worked yet.
        and pod["containers"][0]["cpu"].get("usageNanoCores", 0) > A_TENTH[0]
        and pod["containers"][0]["memory"].get("workingSetBytes")
        and pod.get("cpu", {}).get("usageNanoCores")
    )


def is_stored(pod: Any) -> bool:
    """Whether its files have been counted: containerd does so now and then."""
    parts = (pod["containers"][0].get("rootfs"), pod["containers"][0].get("logs"))
    return all("usedBytes" in (part or {}) for part in (*parts, pod.get("ephemeral-storage")))


class Answers:
    """Of one node, once everything of the Pod is measured."""

    def __init__(self, kube: Kube) -> None:
        kube.apply(probed())
        pod = kube.wait_phase("web", "Running")
        self.node = pod["spec"]["nodeName"]
        self.kube = kube

        def measured(query: str = "") -> Object | None:
            found = json.loads(self.raw("stats/summary" + query))
            found["pods"] = self.pods(found)
            return found if all(map(is_measured, found["pods"])) and found["pods"] else None

        def complete() -> Object | None:
            found = measured()
            # Looked at as it is now: the next one is another moment's.
            return found if found is not None and all(map(is_stored, found["pods"])) else None

        def look() -> object:
            return self.raw("stats/summary"), self.raw("metrics/probes")

        until(
            lambda: len(successes(self.raw("metrics/probes"))) == 3,
            "all probes have succeeded",
            timeout=90,
            show=look,
        )
        self.summary = until(complete, "all of it measured", timeout=120, show=look)
        self.small = until(
            lambda: measured("?only_cpu_and_memory=true"), "measured again", show=look
        )
        self.resource = self.raw("metrics/resource")
        self.probes = self.raw("metrics/probes")

    def raw(self, path: str) -> str:
        return self.kube.out("get", "--raw", f"/api/v1/nodes/{self.node}/proxy/{path}")

    def pods(self, found: Any) -> list[Any]:
        return [one for one in found["pods"] if one["podRef"]["namespace"] == self.kube.namespace]


@pytest.fixture(scope="module")
def kubelets() -> Iterator[Answers]:
    with (
        real_kubelet(have(PROGRAMS), config=SWITCHED_OFF) as kubelet,
        own_namespace(kubelet.running.kube, "stats") as kube,
    ):
        yield Answers(kube)


@pytest.fixture(scope="module")
def ours(cri: Running) -> Iterator[Answers]:
    with own_namespace(cri.kube, "stats") as kube:
        yield Answers(kube)


def fields(value: Any, path: str = "") -> dict[str, type]:
    """Every field below `value` with the type of what it holds; lists are their items."""
    if isinstance(value, dict):
        found: dict[str, type] = {}
        for name, item in value.items():
            found |= fields(item, f"{path}.{name}".strip("."))
        return found
    if isinstance(value, list):
        return {name: type_ for item in value for name, type_ in fields(item, path).items()}
    return {path: type(value)}


def lacking(name: str) -> bool:
    """Whether we say that we do not tell this."""
    parts = name.split(".")
    return any(part in OURS_LACK for part in parts) or any(
        name == known or name.startswith(known + ".") for known in OURS_LACK
    )


@pytest.mark.parametrize("which", ["summary", "small"])
def test_the_same_fields_of_the_same_types(ours: Answers, kubelets: Answers, which: str) -> None:
    here, there = fields(getattr(ours, which)), fields(getattr(kubelets, which))
    more = {name for name in set(here) - set(there) if not name.startswith(NOT_HERE)}
    assert more == set(), "nothing that a kubelet does not know"
    assert {name for name in set(there) - set(here) if not lacking(name)} == set()
    assert {name: here[name] for name in here if name in there} == {
        name: there[name] for name in there if name in here
    }


def told(text: str) -> dict[str, tuple[str, set[str], bool]]:
    """Each metric of the Pod or the node: its type, its labels, whether it has a time."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            timed = sample.timestamp is not None
            found[sample.name] = (family.type, set(sample.labels), timed)
    return found


def test_the_same_resource_metrics(ours: Answers, kubelets: Answers) -> None:
    here, there = told(ours.resource), told(kubelets.resource)
    assert set(there) - set(here) <= METRICS_WE_LACK
    assert here == {name: there[name] for name in here}


def test_the_same_probe_metrics(ours: Answers, kubelets: Answers) -> None:
    here, there = told(ours.probes), told(kubelets.probes)
    assert set(there) - set(here) <= {"process_start_time_seconds"}
    assert here == {name: there[name] for name in here}
    assert successes(ours.probes) == successes(kubelets.probes)


def test_numbers_of_the_same_size(ours: Answers, kubelets: Answers) -> None:
    """The same work under the same limits on the same machine."""
    for answers in (ours, kubelets):
        (pod,) = answers.summary["pods"]
        (container,) = pod["containers"]
        memory = container["memory"]
        assert memory["availableBytes"] + memory["workingSetBytes"] == 64 * 1024 * 1024
        assert A_TENTH[0] < container["cpu"]["usageNanoCores"] < A_TENTH[1], "a tenth of a core"


@pytest.mark.parametrize("path", ["logs/", "logs/syslog", "debug/flags/v", "debug/pprof/", "no"])
def test_the_same_refusals(ours: Answers, kubelets: Answers, path: str) -> None:
    told = []
    for one in (ours, kubelets):
        url = f"/api/v1/nodes/{one.node}/proxy/{path}"
        done = one.kube.run("get", "--raw", url, check=False)
        assert done.returncode != 0
        told.append(done.stderr)
    assert told[0] == told[1]


def test_the_configuration_has_a_kubelets_fields(ours: Answers, kubelets: Answers) -> None:
    here, there = (json.loads(one.raw("configz"))["kubeletconfig"] for one in (ours, kubelets))
    assert {name: type(value) for name, value in here.items() if name in there} == {
        name: type(value) for name, value in there.items() if name in here
    }
    assert (here["kind"], here["apiVersion"]) == (there["kind"], there["apiVersion"])
