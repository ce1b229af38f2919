"""`kubectl top` through a real metrics-server: nodes and containers each have their own usage."""

from __future__ import annotations

import re

import pytest

from tests.support.fixtures import Running
from tests.support.kube import Kube, simple_pod
from tests.support.until import until
from tests.usage.burners import BURN, cpu
from vknode.devcluster.metricsserver import RESOLUTION

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

# A rate needs two looks at a node that knows the container.
SEEN_WITHIN = 12.0 * RESOLUTION
LIMIT = 200  # thousandths of a processor
#: What kubectl says where metrics-server has no measurement, or no time on a busy machine.
NOT_YET = ("not available yet", "not found", "Metrics API not available", "unable to handle")


def milli(text: str) -> int:
    """`kubectl top`'s CPU, which is always in thousandths."""
    found = re.fullmatch(r"(\d+)m", text)
    assert found, text
    return int(found[1])


def mebi(text: str) -> int:
    found = re.fullmatch(r"(\d+)Mi", text)
    assert found, text
    return int(found[1])


def top(kube: Kube, *args: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """CPU and memory by the names before them; empty while metrics-server has none."""
    done = kube.run("top", *args, "--no-headers", check=False)
    if done.returncode != 0:
        assert any(words in done.stderr for words in NOT_YET), done.stderr
        return {}
    rows = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if "<unknown>" in words:  # a node that metrics-server has not seen yet
            continue
        usage = next(index for index, word in enumerate(words) if re.fullmatch(r"\d+m", word))
        memory = next(word for word in words[usage:] if word.endswith("Mi"))
        rows[tuple(words[:usage])] = (milli(words[usage]), mebi(memory))
    return rows


def test_each_virtual_node_has_its_own_usage(measured: Running, kube: Kube) -> None:
    names = measured.cluster.node_names
    busy, *idle = names
    kube.apply(simple_pod("burner", BURN, nodeName=busy, container={"resources": cpu(LIMIT)}))
    kube.wait_phase("burner", "Running")

    def look() -> bool:
        rows = top(kube, "nodes")
        return (
            set(rows) == {(name,) for name in names}
            and rows[busy,][0] >= LIMIT * 0.7
            # Four nodes of one agent on one machine: what one burns is not the others'.
            and all(rows[name,][0] < LIMIT * 0.5 for name in idle)
        )

    until(
        look,
        f"{busy} is busy, and no other",
        timeout=SEEN_WITHIN,
        every=1.0,
        show=lambda: top(kube, "nodes"),
    )


def test_each_container_has_its_own_usage(kube: Kube) -> None:
    pod = simple_pod("two", BURN, container={"resources": cpu(LIMIT)})
    # Memory that is used and not only mapped.
    hold = ["sh", "-c", "head -c 20000000 /dev/zero > /dev/shm/held; sleep 3600"]
    pod["spec"]["containers"].append(
        {"name": "idle", "image": "busybox:1.36", "command": hold, "resources": cpu(LIMIT, 10)}
    )
    kube.apply(pod)
    kube.wait_phase("two", "Running")

    def look() -> dict[tuple[str, ...], tuple[int, int]] | None:
        rows = top(kube, "pods", "--containers")
        burns = rows.get(("two", "main"), (0, 0))[0] >= LIMIT * 0.7
        holds = rows.get(("two", "idle"), (0, 0))[1] >= 15
        return rows if burns and holds else None

    rows = until(
        look,
        "usage of both containers",
        timeout=SEEN_WITHIN,
        every=1.0,
        show=lambda: top(kube, "pods", "--containers"),
    )
    assert set(rows) == {("two", "main"), ("two", "idle")}
    assert rows["two", "main"][0] <= LIMIT * 1.3
    assert rows["two", "idle"][0] < LIMIT * 0.3
    assert rows["two", "main"][1] < 15


def test_a_pod_that_is_gone_has_no_usage(kube: Kube) -> None:
    kube.apply(simple_pod("brief", BURN, container={"resources": cpu(LIMIT)}))
    kube.wait_phase("brief", "Running")
    until(lambda: ("brief",) in top(kube, "pods"), "it is shown", timeout=SEEN_WITHIN, every=1.0)
    kube.out("delete", "pod", "brief", "--grace-period=1")
    until(lambda: ("brief",) not in top(kube, "pods"), "it is gone", timeout=SEEN_WITHIN, every=1.0)
