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
    # Not in the pool contract: swap, pressure (PSI).
    "swap",
    "io",
    "psi",
    # Nor the sizes of the file systems of images, logs and the machine; those of volumes are.
    *(
        f"{where}.{name}"
        for where in (
            "pods.containers.rootfs",
            "pods.containers.logs",
            "pods.ephemeral-storage",
            "node.fs",
        )
        # Of these the node's bytes are told where the cell announces ephemeral-storage; those
        # of the development cluster do not.
        for name in ("availableBytes", "capacityBytes", "inodes", "inodesFree")
    ),
    # Errors of network interfaces.
    "rxErrors",
    "txErrors",
}
# What a kubelet has from cAdvisor, which does not know the sandboxes of a test's own containerd.
NOT_HERE = ("pods.network.", "pods.process_stats.")
CONFIG = {
    # As we are, for the answers where something is switched off.
    "enableSystemLogHandler": False,
    "enableProfilingHandler": False,
    "enableDebugFlagsHandler": False,
    # Its volumes are measured once a minute otherwise.
    "volumeStatsAggPeriod": "5s",
}
MIB = 1024 * 1024
BLOCK = 4096
#: Nanoseconds a second of a container that works as hard as 100m let it: not less, not more.
A_TENTH = 20_000_000, 200_000_000
METRICS_WE_LACK = {
    "node_swap_usage_bytes",
    "pod_swap_usage_bytes",
    "container_swap_usage_bytes",
    "container_swap_limit_bytes",
}


# What the Pod's volumes hold: files, folders and links, of which one file has two names.
WRITE = """
head -c 1m /dev/zero >/disk/file
head -c 5000 /dev/zero >/disk/small
ln /disk/file /disk/again
ln -s file /disk/link
mkdir -p /disk/a/b
touch /disk/a/b/c
head -c 300000 /dev/zero >/memory/file
"""
SETTINGS = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "settings"},
    "data": {"small": "x", "large": "x" * 20_000},
}
KEY = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "key"},
    "stringData": {"key": "x" * 5000},
}
ABOUT = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
VOLUMES: dict[str, Object] = {
    "disk": {"emptyDir": {}},
    "memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
    "settings": {"configMap": {"name": "settings"}},
    "secret": {"secret": {"secretName": "key"}},
    "about": {"downwardAPI": ABOUT},
    "all": {
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"configMap": {"name": "settings"}},
                {"downwardAPI": ABOUT},
            ]
        }
    },
}
# What a kubelet keeps in memory, where folders take no room, and we on disk.
FOLDERS = {"about": 2}
# Those that are a Pod's local storage to a kubelet.
LOCAL = {"disk", "settings"}


def probed() -> Object:
    # It has its turn beside what the container does within the same limit.
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 30}
    container = {
        "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
        "readinessProbe": probe,
        "livenessProbe": probe,
        "startupProbe": probe,
    }
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in VOLUMES]
    writer = {
        "name": "writer",
        "image": "busybox:1.36",
        "command": ["sh", "-ec", WRITE],
        "volumeMounts": mounts,
    }
    return simple_pod(
        "web",
        ("sh", "-c", "seq 20000; seq 3000 >/file; while :; do :; done"),
        container={**container, "volumeMounts": mounts},
        initContainers=[writer],
        volumes=[{"name": name, **source} for name, source in VOLUMES.items()],
        automountServiceAccountToken=False,
    )


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
    """Whether its files have been counted: containerd does so now and then, and so do both that
    are compared here with volumes."""
    parts = (pod["containers"][0].get("rootfs"), pod["containers"][0].get("logs"))
    return (
        all("usedBytes" in (part or {}) for part in (*parts, pod.get("ephemeral-storage")))
        and parts[0]["usedBytes"] > 10_000  # what it wrote at its start
        and len(pod.get("volume", [])) == len(VOLUMES)
    )


class Answers:
    """Of one node, once everything of the Pod is measured."""

    def __init__(self, kube: Kube) -> None:
        kube.apply(SETTINGS, KEY, probed())
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
        real_kubelet(have(PROGRAMS), config=CONFIG) as kubelet,
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


def volumes(answers: Answers) -> dict[str, Any]:
    (pod,) = answers.summary["pods"]
    return {one["name"]: one for one in pod["volume"]}


def test_the_same_of_every_volume(ours: Answers, kubelets: Answers) -> None:
    here, there = volumes(ours), volumes(kubelets)
    assert here.keys() == there.keys() == VOLUMES.keys()
    for name in VOLUMES:
        mine, its = here[name], there[name]
        assert mine.keys() == its.keys()
        more = FOLDERS.get(name, 0) * BLOCK
        assert abs(mine["usedBytes"] - its["usedBytes"] - more) <= BLOCK, name
        assert mine["inodesUsed"] == its["inodesUsed"], name
        for one in (mine, its):
            assert 0 < one["availableBytes"] <= one["capacityBytes"], name
            assert one["inodesFree"] <= one["inodes"], name
    # Of one disk, and of a file system that is as large as the Pod wants it; the machine's
    # memory is what a kubelet gives each of the others.
    for name in (*LOCAL, "memory"):
        assert here[name]["capacityBytes"] == there[name]["capacityBytes"], name
    assert here["memory"]["usedBytes"] == there["memory"]["usedBytes"]
    assert there["disk"]["usedBytes"] > MIB and there["disk"]["inodesUsed"] == 7


def test_the_same_of_logs_and_writable_layers(ours: Answers, kubelets: Answers) -> None:
    for key in ("logs", "rootfs"):
        mine, its = (
            answers.summary["pods"][0]["containers"][0][key] for answers in (ours, kubelets)
        )
        assert abs(mine["usedBytes"] - its["usedBytes"]) <= BLOCK, key
        assert mine["inodesUsed"] == its["inodesUsed"] > 0, key


def test_the_same_things_are_a_pods_local_storage(ours: Answers, kubelets: Answers) -> None:
    rest = []
    for answers in (ours, kubelets):
        (pod,) = answers.summary["pods"]
        (container,) = pod["containers"]
        parts = [container["rootfs"], container["logs"]]
        parts += [one for name, one in volumes(answers).items() if name in LOCAL]
        storage = pod["ephemeral-storage"]
        rest.append(
            {
                key: storage[key] - sum(part[key] for part in parts)
                for key in ("usedBytes", "inodesUsed")
            }
        )
    assert rest[0] == rest[1] == {"usedBytes": BLOCK, "inodesUsed": 1}, "its hosts file"


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
