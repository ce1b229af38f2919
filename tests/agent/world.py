"""The API as a user of it, a pool at the client's seam, and agents that come and go."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.agent.fake_pool import FakePool
from vknode.agent.app import Agent
from vknode.agent.config import AgentConfig, KubeletConfig, PoolConfig
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError

#: Seconds that anything may take which involves the API server, on a machine that is busy.
PATIENCE = 60.0


class World:
    """The API as a user, the pool, and agents that come and go."""

    def __init__(self, client: KubeClient, namespace: str, kubeconfig: Path) -> None:
        self.client = client
        self.namespace = namespace
        self.node = f"cell-{uuid.uuid4().hex[:6]}"
        self.pool = FakePool([self.node])
        self.config = AgentConfig(
            file=Path("agent.yaml"),
            name=f"agent-{self.node}",
            pools=(PoolConfig("az1", "unix:/nowhere"),),
            kubeconfig=kubeconfig,
            kubelet=KubeletConfig(address="127.0.0.1", port=10250),
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        agent = Agent(self.config, link=lambda pool: self.pool.link(pool.name))
        stop = asyncio.Event()
        await agent.open()
        running = asyncio.create_task(agent.run(10250, stop))
        try:
            await self.until(lambda: agent.ready or running.done())
            yield agent
        finally:
            stop.set()
            try:
                await running
            finally:
                await agent.close()

    async def until(self, condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.01)

    def path(self, name: str = "", kind: str = "pods") -> str:
        base = f"/api/v1/namespaces/{self.namespace}/{kind}"
        return f"{base}/{name}" if name else base

    async def create(self, name: str = "web", **spec: Any) -> str:
        container = {"name": "main", "image": "busybox:1.36", **spec.pop("container", {})}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": self.node,
                "terminationGracePeriodSeconds": 5,
                "containers": [container],
                **spec,
            },
        }
        answer = await self.client.create(self.path(), msgspec.json.encode(body))
        return str(msgspec.json.decode(answer)["metadata"]["uid"])

    async def get(self, name: str = "web") -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = msgspec.json.decode(await self.client.get(self.path(name)))
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        return found

    async def when(
        self, condition: Callable[[dict[str, Any] | None], Any], name: str = "web"
    ) -> dict[str, Any]:
        """The Pod (or {}) as soon as the condition holds of it."""
        pod = None
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition(pod := await self.get(name)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"last seen: {pod}") from None
        return pod or {}

    async def phase(self, phase: str, name: str = "web") -> dict[str, Any]:
        return await self.when(lambda pod: pod and pod["status"].get("phase") == phase, name)

    async def delete(self, name: str = "web", grace: int | None = None) -> None:
        await self.client.delete(self.path(name), grace_period_seconds=grace)

    async def events(self, reason: str) -> list[dict[str, Any]]:
        found = msgspec.json.decode(await self.client.get(self.path(kind="events")))
        return [event for event in found["items"] if event["reason"] == reason]

    async def event(self, reason: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            while not (found := await self.events(reason)):
                await asyncio.sleep(0.05)
        return found[0]


async def node_events(world: World, reason: str) -> list[str]:
    """Messages of our node's events with this reason."""
    found = msgspec.json.decode(await world.client.get("/api/v1/namespaces/default/events"))
    return [
        event["message"]
        for event in found["items"]
        if event["reason"] == reason and event["involvedObject"]["name"] == world.node
    ]
