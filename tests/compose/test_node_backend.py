"""What the kubelet API tells of a node, from the agent's memory and a real pool's ListStats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.agent.pods import pod_json
from tests.pool_contract.poolprocess import pool_process
from vknode.agent.config import AgentConfig, KubeletConfig, PoolConfig, Taint
from vknode.agent.links import Link
from vknode.agent.pod_record import Placement, PodRecord
from vknode.agent.pod_store import PodObject, PodStore
from vknode.compose.kubelet_config import kubelet_configuration
from vknode.compose.node_backend import AgentNodes
from vknode.compose.node_usage import OurPod, pods_usage
from vknode.kubeletapi import BackendError, NodeUsage, PodUsage, probe_metrics, resource_metrics
from vknode.kubeletapi.exposition import render
from vknode.kubeletapi.summary_json import summary
from vknode.kubeletapi.usage_history import UsageHistory
from vknode.pool.client import PoolClient
from vknode.pool.v1 import spec_pb2, stats_pb2, status_pb2
from vknode.translate.facts import NodeFacts

MIB = 1024 * 1024
NOW = 1_700_000_000 * 10**9


def limited(*limits: str | None, **spec: Any) -> dict[str, Any]:
    """A Pod with a container for each memory limit."""
    containers = [
        {"name": f"c{number}", "resources": {"limits": {"memory": limit}} if limit else {}}
        for number, limit in enumerate(limits)
    ]
    return pod_json("u", spec={"containers": containers, **spec})


def first(name: str, limit: str, sidecar: bool = False) -> dict[str, Any]:
    """An init container."""
    container: dict[str, Any] = {"name": name, "resources": {"limits": {"memory": limit}}}
    return container | ({"restartPolicy": "Always"} if sidecar else {})


def entry(**fields: Any) -> stats_pb2.SandboxStats:
    return stats_pb2.SandboxStats(uid="u", namespace="forged", name="forged", **fields)


def one(entry: stats_pb2.SandboxStats, pod: dict[str, Any]) -> PodUsage:
    sandbox = status_pb2.Sandbox(uid="u")
    (usage,) = pods_usage([entry], lambda _uid: OurPod("default", "web", pod, sandbox), NOW)
    return usage


def test_names_are_the_api_servers() -> None:
    usage = one(entry(), limited(None))
    assert (usage.namespace, usage.name, usage.started, usage.usage) == (
        "default",
        "web",
        None,
        None,
    )


def test_what_is_not_ours_is_left_out() -> None:
    assert pods_usage([entry(), entry()], lambda _uid: None, NOW) == []


@pytest.mark.parametrize(
    ("pod", "limits", "whole"),
    [
        (limited("64Mi", "1Gi"), [64 * MIB, 1024 * MIB], 1088 * MIB),
        (limited("64Mi", None), [64 * MIB, None], None),
        (limited(None, resources={"limits": {"memory": "2Gi"}}), [None], 2048 * MIB),
        (
            limited("64Mi", initContainers=[{"name": "s", "restartPolicy": "Always"}]),
            [64 * MIB],
            None,
        ),
        (limited("64Mi", initContainers=[{"name": "i"}]), [64 * MIB], None),
        (limited("64Mi", initContainers=[first("s", "32Mi", True)]), [64 * MIB], 96 * MIB),
        (
            limited("64Mi", initContainers=[first("s", "32Mi", True), first("i", "80Mi")]),
            [64 * MIB],
            112 * MIB,
        ),
    ],
)
def test_memory_limits(pod: dict[str, Any], limits: list[int | None], whole: int | None) -> None:
    names = [container["name"] for container in pod["spec"]["containers"]]
    usage = one(entry(containers=[stats_pb2.ContainerStats(name=name) for name in names]), pod)
    assert [container.memory_limit for container in usage.containers] == limits
    assert usage.memory_limit == whole


def test_a_limit_that_was_changed_while_it_runs() -> None:
    sandbox = status_pb2.Sandbox(uid="u")
    status = sandbox.containers.add(name="c0")
    status.allocated.limits["memory"] = str(256 * MIB)
    pod = limited("64Mi")
    told = entry(containers=[stats_pb2.ContainerStats(name="c0")])
    (usage,) = pods_usage([told], lambda _uid: OurPod("default", "web", pod, sandbox), NOW)
    assert usage.containers[0].memory_limit == 256 * MIB


def test_volumes_are_the_pods_and_those_on_disk_are_its_local_storage() -> None:
    pod = limited(
        None,
        volumes=[
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "key", "secret": {"secretName": "key"}},
            {"name": "token", "projected": {}},
            {"name": "about", "downwardAPI": {}},
            {"name": "host", "hostPath": {"path": "/srv"}},
        ],
    )
    names = ["about", "disk", "key", "memory", "other", "settings", "token"]
    told = [stats_pb2.VolumeStats(name=name, used_bytes=1, free_inodes=0) for name in names]
    usage = one(entry(volumes=[*told, stats_pb2.VolumeStats(name="disk")], files_bytes=2), pod)
    assert [(volume.name, volume.local) for volume in usage.volumes] == [
        ("disk", True),
        ("memory", False),
        ("settings", True),
        ("key", False),
        ("token", False),
        ("about", False),
    ]
    disk = usage.volumes[0]
    assert (disk.at, disk.used, disk.inodes_free, disk.inodes) == (NOW, 1, 0, None)
    assert (usage.files_bytes, usage.files_inodes) == (2, None)


NUMBERS = st.integers(0, 2**64 - 1)
TIMES = st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(0, 10**9))
USAGES = st.builds(
    stats_pb2.Usage,
    at=st.none() | TIMES,
    cpu_nanoseconds=NUMBERS,
    memory_working_set_bytes=NUMBERS,
    memory_usage_bytes=st.none() | NUMBERS,
)
ENTRIES = st.builds(
    stats_pb2.SandboxStats,
    uid=st.sampled_from(["u", "v", "w"]),
    containers=st.lists(
        st.builds(
            stats_pb2.ContainerStats,
            name=st.sampled_from(["c0", "c1", ""]),
            started_at=st.none() | TIMES,
            usage=st.none() | USAGES,
            logs_bytes=st.none() | NUMBERS,
            logs_inodes=st.none() | NUMBERS,
        ),
        max_size=3,
    ),
    volumes=st.lists(
        st.builds(
            stats_pb2.VolumeStats,
            name=st.sampled_from(["v0", "v1", ""]),
            at=st.none() | TIMES,
            used_bytes=st.none() | NUMBERS,
            capacity_bytes=st.none() | NUMBERS,
        ),
        max_size=3,
    ),
    files_bytes=st.none() | NUMBERS,
    usage=st.none() | USAGES,
    network_receive_bytes=st.none() | NUMBERS,
    probes=st.lists(
        st.builds(
            stats_pb2.ProbeStats,
            container=st.sampled_from(["c0", "c1"]),
            type=st.integers(0, 5),
            successful=NUMBERS,
            durations=st.lists(NUMBERS, max_size=14),
            duration_nanoseconds=NUMBERS,
        ),
        max_size=3,
    ),
)


@settings(deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=4), min_size=1, max_size=3))
def test_whatever_a_pool_tells_can_be_read(rounds: list[list[stats_pb2.SandboxStats]]) -> None:
    """Twice the same, impossible times, no numbers, probes of a newer contract."""
    pod = limited("64Mi", volumes=[{"name": name, "emptyDir": {}} for name in ("v0", "v1")])
    ours = {uid: OurPod("default", uid, pod, None) for uid in "uv"}
    history = UsageHistory()
    for entries in rounds:
        pods = pods_usage(entries, ours.get, NOW)
        assert [pod.uid for pod in pods] == sorted({e.uid for e in entries} & ours.keys())
        report = history.take(NodeUsage("node-1", NOW, pods, frozenset(ours)))
        json.dumps(summary(report))
        for families in (resource_metrics.families(report), probe_metrics.families(pods)):
            told = [
                (sample.name, tuple(sorted(sample.labels.items())))
                for family in text_string_to_metric_families(render(families).decode())
                for sample in family.samples
            ]
            assert len(set(told)) == len(told), "no series twice: a reader would refuse the page"


def test_the_configuration_as_a_kubelet_tells_it() -> None:
    config = AgentConfig(
        file=Path("agent.yaml"),
        pools=(PoolConfig("az1", "unix:/x"),),
        taints=(Taint("a/b", "c", "NoSchedule"),),
        kubelet=KubeletConfig(
            address="10.0.0.5", serving_key=Path("/secret/key"), cluster_dns=("10.96.0.10",)
        ),
    )
    told = kubelet_configuration(config, {"pods": "250", "cpu": "4"})
    assert told["kind"] == "KubeletConfiguration"
    assert told["apiVersion"] == "kubelet.config.k8s.io/v1beta1"
    assert (told["address"], told["clusterDNS"], told["maxPods"]) == (
        "10.0.0.5",
        ["10.96.0.10"],
        250,
    )
    assert told["registerWithTaints"] == [{"key": "a/b", "value": "c", "effect": "NoSchedule"}]
    assert (told["enableSystemLogHandler"], told["enableSystemLogQuery"]) == (False, False)
    assert "secret" not in msgspec.json.encode(told).decode()
    assert "maxPods" not in kubelet_configuration(config, {})
    shown = replace(config, kubelet=replace(config.kubelet, system_logs=Path("/var/log/x")))
    told = kubelet_configuration(shown, {})
    assert (told["enableSystemLogHandler"], told["enableSystemLogQuery"]) == (True, False)


@dataclass
class Known:
    """Two nodes, one a cell of the pool."""

    places: dict[str, Placement]

    def place(self, node: str) -> Placement | None:
        return self.places.get(node)

    @property
    def registered_nodes(self) -> list[str]:
        return sorted(self.places)


@dataclass
class Setting:
    nodes: AgentNodes
    client: PoolClient
    store: PodStore
    records: dict[str, PodRecord]
    link: Link
    running: set[str]

    async def add(self, uid: str, name: str, node: str, *, known: bool = True) -> None:
        spec = spec_pb2.SandboxSpec(
            uid=uid,
            namespace="default",
            name=name,
            cell=node,
            tenant="default",
            restart_policy=spec_pb2.RESTART_POLICY_ALWAYS,
        )
        container = spec.containers.add(
            name="main",
            image="busybox",
            image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
            command=["sleep", "3600"],
        )
        probe = container.readiness_probe
        probe.handler.exec.command.extend(["true"])
        probe.timeout_seconds, probe.period_seconds = 60, 1
        probe.success_threshold = probe.failure_threshold = 1
        if known:
            self.store.upsert(PodObject(msgspec.json.encode(pod_json(uid, name=name, node=node))))
            self.records[uid] = PodRecord(uid, node, self.link, node)
        await self.client.create(spec, "test")
        async with asyncio.timeout(60):
            while uid not in self.running:
                await asyncio.sleep(0.02)


@pytest.fixture
async def setting(short_path: Path) -> AsyncIterator[Setting]:
    async with pool_process(short_path, "--runtime", "sim", "--cells", "2") as process:
        ready = await process.event("pool_ready")
        client = PoolClient("az1", ready["endpoint"])
        link = Link("az1", lambda up, down: client)
        store, records, running = PodStore(), dict[str, PodRecord](), set[str]()
        places = {
            cell: Placement(cell, f"uid-{cell}", link, NodeFacts(cell, ["10.0.0.5"]))
            for cell in ("az1-a", "az1-b")
        }
        config = AgentConfig(file=Path("a.yaml"), pools=(PoolConfig("az1", "unix:/x"),))
        nodes = AgentNodes(config, Known(places), store, records, {"az1": client})

        async def follow_cells() -> None:
            async for update in client.cells():
                link.cells = {**link.cells, **{cell.name: cell for cell in update.cells}}

        async def follow() -> None:
            async for update in client.sandboxes():
                for sandbox in update.sandboxes:
                    if sandbox.uid in records:
                        records[sandbox.uid].observe(sandbox)
                    if any(container.ready for container in sandbox.containers):
                        running.add(sandbox.uid)

        following = [asyncio.create_task(follow()), asyncio.create_task(follow_cells())]
        try:
            yield Setting(nodes, client, store, records, link, running)
        finally:
            await client.close()
            await asyncio.wait(following, timeout=60)


A, B, STRANGER = (f"6f6f6f6f-0000-4000-8000-00000000000{n}" for n in range(3))


async def test_each_node_has_its_own_pods(setting: Setting) -> None:
    await setting.add(A, "web", "az1-a")
    await setting.add(B, "db", "az1-b")
    await setting.add(STRANGER, "other", "az1-a", known=False)
    assert list(setting.nodes.nodes()) == ["az1-a", "az1-b"]
    first = await setting.nodes.measure("az1-a")
    second = await setting.nodes.measure("az1-b")
    assert [pod.name for pod in first.pods] == ["web"], "a sandbox without a Pod is nobody's"
    assert [pod.name for pod in second.pods] == ["db"]
    (pod,) = first.pods
    assert pod.usage is not None and pod.usage.working_set > 0
    assert pod.containers[0].started is not None and pod.started is not None
    assert first.living == {A}
    assert first.memory_capacity is not None and first.memory_capacity > MIB
    (probe,) = pod.probes
    assert (probe.container, probe.type, probe.failed) == ("main", "Readiness", 0)
    assert probe.successful == sum(probe.buckets) > 0
    (told,) = setting.nodes.running_pods("az1-a")
    assert (told.name, set(told.images), told.exited) == ("web", {"main"}, 0)
    assert setting.nodes.desired_pods("az1-a") == 1
    assert setting.nodes.kubelet_configuration("az1-a")["maxPods"] > 0


async def test_a_pool_may_not_tell_of_anothers_pods(setting: Setting) -> None:
    await setting.add(A, "web", "az1-a")
    setting.records[A].link = Link("az2", lambda up, down: setting.client)
    assert (await setting.nodes.measure("az1-a")).pods == []


async def test_a_node_that_is_not_there(setting: Setting) -> None:
    assert not setting.nodes.has_node("az9-a")
    with pytest.raises(BackendError, match="node az9-a is not registered"):
        await setting.nodes.measure("az9-a")


async def test_a_pool_that_has_gone(setting: Setting) -> None:
    await setting.client.close()
    with pytest.raises(BackendError, match="pool az1: "):
        await setting.nodes.measure("az1-a")
