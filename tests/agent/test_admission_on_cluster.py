"""Pods that name their node themselves are admitted or refused as by a kubelet."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from tests.agent.world import PATIENCE, World
from vknode.pool.errors import NO_CAPACITY, UNSUPPORTED_FIELD, PoolFailure
from vknode.pool.v1 import status_pb2

pytestmark = pytest.mark.cluster


def asking(cpu: str) -> dict[str, object]:
    return {"resources": {"requests": {"cpu": cpu}}}


async def test_a_burst_fills_the_cell_and_not_more(world: World) -> None:
    async with world.agent():
        names = [f"p{number}" for number in range(12)]
        await asyncio.gather(*(world.create(name, container=asking("1")) for name in names))
        phases: Counter[str] = Counter()
        async with asyncio.timeout(PATIENCE):
            while phases["Running"] + phases["Failed"] < 12:
                pods = [await world.get(name) for name in names]
                phases = Counter(pod["status"]["phase"] for pod in pods if pod)
                await asyncio.sleep(0.05)
        assert phases == {"Running": 8, "Failed": 4}  # the cell has 8
        assert len(world.pool.creates) == 8
        failed = next(pod for pod in pods if pod and pod["status"]["phase"] == "Failed")
        assert failed["status"]["reason"] == "OutOfcpu"
        assert failed["status"]["message"] == (
            "Pod was rejected: Node didn't have enough resource: cpu, "
            "requested: 1000, used: 8000, capacity: 8000"
        )
        event = await world.event("OutOfcpu")
        assert event["type"] == "Warning"
        assert event["message"].startswith("Node didn't have enough resource: cpu")


async def test_what_ends_makes_room_also_for_a_new_agent(world: World) -> None:
    async with world.agent():
        uid = await world.create("first", container=asking("6"))
        await world.phase("Running", "first")
    async with world.agent():
        await world.create("second", container=asking("3"))
        await world.phase("Failed", "second")
        sandbox = world.pool.sandboxes[uid]
        sandbox.state = status_pb2.SANDBOX_STATE_SUCCEEDED
        world.pool.tell(sandbox)
        await world.phase("Succeeded", "first")
        await world.create("third", container=asking("3"))
        await world.phase("Running", "third")


async def test_who_is_refused_for_another_reason_takes_no_room(world: World) -> None:
    async with world.agent():
        claim = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
        mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
        for name in ("a", "b"):
            await world.create(name, volumes=[claim], container={**asking("5"), **mount})
            pod = await world.phase("Failed", name)
            assert pod["status"]["reason"] == "UnsupportedField"
        world.pool.create_failures = [PoolFailure(UNSUPPORTED_FIELD, "no", field="host_pid")]
        await world.create("c", container=asking("5"))
        await world.phase("Failed", "c")
        await world.create("d", container=asking("8"))
        await world.phase("Running", "d")


async def test_a_resize_that_is_carried_out_counts(world: World) -> None:
    async with world.agent():
        await world.create("first", container=asking("1"))
        await world.phase("Running", "first")
        container = {"name": "main", "resources": {"requests": {"cpu": "7"}}}
        await world.client.patch(
            f"{world.path('first')}/resize",
            msgspec.json.encode({"spec": {"containers": [container]}}),
            content_type="application/strategic-merge-patch+json",
        )
        await world.until(lambda: world.pool.updates)
        await world.create("second", container=asking("2"))
        pod = await world.phase("Failed", "second")
        assert "requested: 2000, used: 7000" in pod["status"]["message"]


async def test_labels_that_were_just_given_count(world: World) -> None:
    async with world.agent():
        label = msgspec.json.encode({"metadata": {"labels": {"just": "now"}}})
        await world.client.patch(f"/api/v1/nodes/{world.node}", label)
        await world.create("fits", nodeSelector={"just": "now"})
        await world.phase("Running", "fits")
        await world.create("not", nodeSelector={"just": "never"})
        pod = await world.phase("Failed", "not")
        assert pod["status"]["reason"] == "NodeAffinity"


async def test_a_wrong_operating_system_is_refused_by_its_own_reason(world: World) -> None:
    async with world.agent():
        await world.create(os={"name": "windows"})
        pod = await world.phase("Failed")
        assert pod["status"]["reason"] == "PodOSNotSupported"
        assert not world.pool.creates


@pytest.mark.parametrize(
    ("failure", "reason", "words"),
    [
        (
            PoolFailure(UNSUPPORTED_FIELD, "no", field='security.sysctls["kernel.msgmax"]'),
            "SysctlForbidden",
            'forbidden sysctl: "kernel.msgmax" not allowlisted',
        ),
        (
            PoolFailure(
                UNSUPPORTED_FIELD, "no profiles here", field="containers[0].security.app_armor"
            ),
            "AppArmor",
            "Cannot enforce AppArmor: no profiles here",
        ),
    ],
)
async def test_what_only_the_pool_can_tell_has_a_kubelets_reason(
    world: World, failure: PoolFailure, reason: str, words: str
) -> None:
    world.pool.create_failures = [failure]
    async with world.agent():
        await world.create()
        pod = await world.phase("Failed")
        assert pod["status"]["reason"] == reason
        assert pod["status"]["message"] == f"Pod was rejected: {words}"


async def test_a_cell_that_is_full_of_ending_pods_is_waited_for(world: World) -> None:
    """Forced deletions free the API's places at once, and the pool's a little later."""
    world.pool.ends_by_itself = False
    async with world.agent():
        uid = await world.create("old")
        await world.phase("Running", "old")
        await world.delete("old", grace=0)
        await world.until(lambda: world.pool.sandboxes[uid].deleting)
        world.pool.create_failures = [PoolFailure(NO_CAPACITY, "full", field="cpu")]
        await world.create("new")
        await world.phase("Running", "new")
        world.pool.create_failures = [PoolFailure(NO_CAPACITY, "full", field="cpu")]
        world.pool.end(uid)
        await world.until(lambda: uid not in world.pool.sandboxes)
        await world.create("late")
        await world.phase("Failed", "late")


async def test_extended_resources_have_the_pools_names_there(world: World) -> None:
    world.pool.cells[0].capacity["a100"] = "2"
    world.config = replace(world.config, extended_resources={"example.com/gpu": "a100"})

    def gpus(name: str, count: str) -> dict[str, object]:
        return {"resources": {"limits": {name: count}}}

    async with world.agent():
        node = msgspec.json.decode(await world.client.get(f"/api/v1/nodes/{world.node}"))
        assert node["status"]["capacity"]["example.com/gpu"] == "2"
        assert "a100" not in node["status"]["capacity"]
        uid = await world.create("one", container=gpus("example.com/gpu", "2"))
        await world.phase("Running", "one")
        assert dict(world.pool.specs[uid].containers[0].resources.limits) == {"a100": "2"}
        await world.create("two", container=gpus("example.com/gpu", "1"))
        pod = await world.phase("Failed", "two")
        assert pod["status"]["reason"] == "OutOfexample.com/gpu"
        await world.create("none", container=gpus("example.com/none", "1"))
        pod = await world.phase("Failed", "none")
        assert pod["status"]["reason"] == "OutOfexample.com/none"
