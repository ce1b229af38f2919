"""A pool that speaks of another pool's sandboxes and cells: nothing of it is believed, it is named,
and the other pool's Pods and their Secrets never reach it. Simulated pools behind real gRPC, the
agent in this process, a real API server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agent.world import PATIENCE, World
from tests.conftest import ControlPlaneHandle
from tests.support.liar import serving
from vknode.agent.app import Agent
from vknode.agent.config import PoolConfig
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import ApiError
from vknode.pool.v1 import cell_pb2, status_pb2

pytestmark = pytest.mark.cluster

LIE = "6.6.6.6"


class Two:
    """Two pools of one cell each; `world.node` is the honest one's."""

    def __init__(self, world: World, folder: Path) -> None:
        suffix = uuid.uuid4().hex[:6]
        self.world = world
        self.folder = folder
        self.honest, self.lying = f"good-{suffix}", f"liar-{suffix}"
        self.node, self.own = f"{self.honest}-a", f"{self.lying}-a"
        world.node = self.node
        world.config = replace(
            world.config,
            name=f"agent-{suffix}",
            pools=(
                PoolConfig(self.honest, f"unix:{folder / self.honest}.sock"),
                PoolConfig(self.lying, f"unix:{folder / self.lying}.sock"),
            ),
            pool_unreachable_after=1.0,
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        agent, stop = Agent(self.world.config), asyncio.Event()
        await agent.open()
        running = asyncio.create_task(agent.run(10250, stop))
        try:
            await self.world.until(lambda: agent.ready or running.done())
            assert not running.done(), running.exception()
            yield agent
        finally:
            stop.set()
            try:
                await running
            finally:
                await agent.close()

    async def pod(self, name: str, node: str) -> str:
        """A Pod that runs, and its UID."""
        self.world.node = node
        uid = await self.world.create(name)
        await self.world.phase("Running", name)
        return uid

    async def node_object(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(
            await self.world.client.get(f"/api/v1/nodes/{name}")
        )
        return found

    async def named(self, node: str, *words: str) -> None:
        """An event at the Node names the claim."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = msgspec.json.decode(
                    await self.world.client.get("/api/v1/namespaces/default/events")
                )
                texts = [
                    event["message"]
                    for event in found["items"]
                    if event["reason"] == "PoolClaimRefused"
                    and event["involvedObject"]["name"] == node
                ]
                if any(all(word in text for word in words) for text in texts):
                    return
                await asyncio.sleep(0.05)

    def refused(self, agent: Agent, why: str) -> float:
        return (
            agent.metrics.registry.get_sample_value(
                "vknode_pool_claims_refused_total", {"pool": self.lying, "why": why}
            )
            or 0.0
        )


@pytest.fixture
async def two(
    control_plane: ControlPlaneHandle, namespace: str, short_path: Path
) -> AsyncIterator[Two]:
    connection = await connect(control_plane.kubeconfig)
    client = KubeClient(connection)
    made = Two(World(client, namespace, control_plane.kubeconfig), short_path)
    yield made
    for node in (made.node, made.own):
        try:
            await client.delete(f"/api/v1/nodes/{node}")
        except ApiError as error:
            assert error.is_not_found
    await connection.close()


def ended(uid: str, cell: str) -> status_pb2.Sandbox:
    return status_pb2.Sandbox(
        uid=uid, cell=cell, state=status_pb2.SANDBOX_STATE_FAILED, pod_ips=[LIE]
    )


async def test_what_a_pool_says_of_anothers_sandbox_reaches_no_pod(two: Two) -> None:
    async with (
        serving(two.honest, two.folder),
        serving(two.lying, two.folder) as liar,
        two.agent() as agent,
    ):
        uid = await two.pod("web", two.node)
        before = await two.world.get()
        event = status_pb2.SandboxEvent(
            uid=uid, type="Warning", reason="Lied", message="it is all over"
        )
        for cell in (two.node, two.own):
            liar.report(ended(uid, cell))
            liar.report(gone=[ended(uid, cell)])
        liar.report(events=[event])
        # Its stream is in order: when its own Pod runs all the lies have been heard.
        own = await two.pod("own", two.own)
        after = await two.world.get()
        assert before is not None and after is not None
        assert after["status"] == before["status"]
        assert not await two.world.events("Lied")
        assert two.refused(agent, "other_pool") == 5
        await two.named(two.node, f"pool {two.lying}", uid, f"pool {two.honest}")
        assert liar.given == [own]
        # And it still ends in order, by its own pool's word.
        await two.world.delete("web", grace=1)
        await two.world.when(lambda pod: pod is None, "web")


async def test_a_sandbox_in_another_cell_than_its_pods_is_not_believed(two: Two) -> None:
    async with (
        serving(two.honest, two.folder),
        serving(two.lying, two.folder) as liar,
        two.agent() as agent,
    ):
        liar.answers_cell = two.node
        two.world.node = two.own
        await two.world.create("web")
        event = await two.world.event("FailedCreatePodSandBox")
        assert f"pool {two.lying} answered for another sandbox or cell" in event["message"]
        await two.named(two.own, f"pool {two.lying}", two.node)
        pod = await two.world.get("web")
        assert pod is not None and pod["status"]["phase"] == "Pending"
        assert two.refused(agent, "other_cell") >= 1
        liar.answers_cell = ""  # from now on it is honest
        await two.world.phase("Running", "web")


def cell(name: str, zone: str) -> cell_pb2.Cell:
    return cell_pb2.Cell(
        name=name,
        zone=zone,
        capacity={"cpu": "64", "memory": "256Gi", "pods": "500"},
        health=cell_pb2.HEALTH_HEALTHY,
        info=cell_pb2.NodeInfo(operating_system="linux", architecture="amd64"),
    )


async def test_a_pool_cannot_announce_its_way_into_anothers_cell(two: Two) -> None:
    async with serving(two.lying, two.folder) as liar:
        async with serving(two.honest, two.folder), two.agent() as agent:
            await two.pod("before", two.node)
            liar.steal(cell(two.node, two.lying))
            await two.named(two.node, two.honest, two.lying)
            assert two.refused(agent, "cell_taken") >= 1
            assert (await labels(two))["topology.kubernetes.io/zone"] == two.honest
            await two.pod("after", two.node)
        # The honest pool is away, and a new agent hears the liar first, and alone.
        async with two.agent() as agent:
            await two.world.until(lambda: two.refused(agent, "cell_taken"))
            two.world.node = two.node
            await two.world.create("later", container={"env": [{"name": "A", "value": "secret"}]})
            async with serving(two.honest, two.folder) as honest:
                await two.world.phase("Running", "later")
                assert len(honest.given) == 1
            assert (await labels(two))["topology.kubernetes.io/zone"] == two.honest
        assert liar.given == []


async def labels(two: Two) -> dict[str, str]:
    found: dict[str, str] = (await two.node_object(two.node))["metadata"]["labels"]
    return found
