"""The node side against a real API server and node lifecycle controller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import structlog

from tests.agent.test_links import Announcer, Nobody, change
from tests.conftest import ControlPlaneHandle
from tests.nodes.cells import HandLink, cell
from vknode.agent.config import AgentConfig, LeaseConfig, PoolConfig
from vknode.agent.events import NORMAL, EventRecorder, ObjectRef
from vknode.agent.leases import LeaseKeeper
from vknode.agent.links import Link
from vknode.agent.node_objects import DECLARED_FEATURES
from vknode.agent.node_ports import NodePortError, NodePorts
from vknode.agent.nodes import NodeController
from vknode.agent.pool_link import PoolLink
from vknode.devcluster.faultproxy import FaultProxy
from vknode.devcluster.identity import grant
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import ApiError
from vknode.pool.v1 import cell_pb2

pytestmark = pytest.mark.cluster

#: Seconds that anything may take which involves the API server, on a machine that is busy.
PATIENCE = 60.0


@dataclass
class Side:
    """A node side that runs, and a client of its own to look at the result."""

    client: KubeClient
    nodes: NodeController
    leases: LeaseKeeper
    links: dict[str, HandLink]
    task: asyncio.Task[None]
    look: KubeClient
    expect_end: bool = False

    async def node(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(await self.look.get(f"/api/v1/nodes/{name}"))
        except ApiError as error:
            if error.is_not_found:
                return None
            raise
        return found

    async def ready(self, name: str) -> tuple[str, str]:
        node = await self.node(name)
        for condition in (node or {}).get("status", {}).get("conditions", []):
            if condition["type"] == "Ready":
                return condition["status"], condition["reason"]
        return "", ""

    async def until(self, what: Callable[[], Awaitable[bool]], seconds: float = PATIENCE) -> None:
        async with asyncio.timeout(seconds):
            while not await what():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.05)

    async def until_ready(self, name: str, status: str, reason: str) -> None:
        async def so() -> bool:
            return await self.ready(name) == (status, reason)

        await self.until(so)


@asynccontextmanager
async def node_side(
    control_plane: ControlPlaneHandle,
    agent: str,
    *pools: str,
    unreachable_after: float = 1.0,
    gone_after: float = 300.0,
    renew: float = 10.0,
    server: str = "",
    ports: NodePorts | None = None,
    max_cells: int = 1000,
    links: Sequence[PoolLink] = (),
) -> AsyncIterator[Side]:
    """Pools that the test speaks for, and those behind `links`."""
    hands = {pool: HandLink(pool) for pool in pools}
    all_links = [*hands.values(), *links]
    config = AgentConfig(
        file=Path("test.yaml"),
        name=agent,
        pools=tuple(
            PoolConfig(link.name, f"unix:/{link.name}", max_cells=max_cells) for link in all_links
        ),
        lease=LeaseConfig(40, renew),
        pool_unreachable_after=unreachable_after,
        cell_gone_after=gone_after,
    )
    with TemporaryDirectory() as folder:
        # The agent's real rights, not the administrator's.
        granted = await grant(
            control_plane.kubectl,
            Path(folder) / "agent.kubeconfig",
            server=server or control_plane.url,
            ca_pem=control_plane.ca.read_bytes(),
            nodes=[],
        )
        connection = await connect(granted)
    looking = await connect(control_plane.kubeconfig)
    client = KubeClient(connection)
    leases = LeaseKeeper(client, duration=40, renew=renew)
    events = EventRecorder(client)
    nodes = NodeController(client, config, all_links, leases, events=events, ports=ports)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(nodes.run())
            group.create_task(leases.run())
            group.create_task(events.run())

    task = asyncio.create_task(run())
    try:
        side = Side(client, nodes, leases, hands, task, KubeClient(looking))
        yield side
        if task.done() and not side.expect_end:
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()
        await looking.close()


@dataclass
class Ports:
    """Ports by order; those that are claimed are kept, and only so many nodes get one."""

    most: int = 1000
    claimed: dict[str, int] = field(default_factory=dict)
    open_: dict[str, int] = field(default_factory=dict)

    def claim(self, node: str, port: int) -> None:
        self.claimed[node] = port

    async def open(self, node: str) -> int:
        if node not in self.open_:
            if len(self.open_) >= self.most:
                raise NodePortError("kubelet.nodePorts: none is free; give a wider range")
            taken = {*self.open_.values(), *self.claimed.values()}
            free = next(port for port in range(20_000, 30_000) if port not in taken)
            self.open_[node] = self.claimed.get(node, free)
        return self.open_[node]

    async def close(self, node: str) -> None:
        self.open_.pop(node, None)


async def announced_port(side: Side, name: str) -> int:
    node = await side.node(name)
    assert node is not None
    port: int = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    return port


async def test_each_node_announces_its_own_port_and_keeps_it(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    names = [f"{agent}-{letter}" for letter in "abc"]
    first = Ports()
    async with node_side(control_plane, agent, "az1", ports=first) as side:
        side.links["az1"].announce(*map(cell, names))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        before = {name: await announced_port(side, name) for name in names}
        assert before == first.open_
        assert len(set(before.values())) == 3
        assert side.client.stats.requests.get("PATCH", 0) == 0, "registered with its port at once"
    second = Ports()
    async with node_side(control_plane, agent, "az1", ports=second) as side:
        side.links["az1"].announce(cell(f"{agent}-0"), *map(cell, reversed(names)))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        await side.until_ready(names[0], "True", "KubeletReady")
        assert {name: await announced_port(side, name) for name in names} == before
        assert await announced_port(side, f"{agent}-0") not in before.values()


async def test_a_node_that_goes_gives_its_port_back(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    a, b = f"{agent}-a", f"{agent}-b"
    ports = Ports()
    async with node_side(control_plane, agent, "az1", gone_after=0.2, ports=ports) as side:
        side.links["az1"].announce(cell(a), cell(b))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        side.links["az1"].announce(cell(b))

        async def gone() -> bool:
            return await side.node(a) is None and a not in ports.open_

        await side.until(gone)
        assert set(ports.open_) == {b}


async def test_a_node_without_a_free_port_has_the_one_of_all_and_says_why(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    a, b = f"{agent}-a", f"{agent}-b"
    async with node_side(control_plane, agent, "az1", ports=Ports(most=1)) as side:
        side.links["az1"].announce(cell(a), cell(b))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        ports = {await announced_port(side, name) for name in (a, b)}
        assert ports == {20_000, 10_250}

        async def told() -> bool:
            query = {"fieldSelector": "reason=NodePortMissing"}
            events = json.loads(
                await side.look.get("/api/v1/namespaces/default/events", query=query)
            )["items"]
            ours = [e for e in events if e["involvedObject"]["name"] in (a, b)]
            return len(ours) == 1 and "give a wider range" in ours[0]["message"]

        await side.until(told)
        assert await side.ready(a) == ("True", "KubeletReady")


@pytest.fixture
async def agent(control_plane: ControlPlaneHandle) -> AsyncIterator[str]:
    """An agent's name of the test's own; its Nodes are deleted afterwards."""
    name = f"t{uuid4().hex[:8]}"
    yield name
    connection = await connect(control_plane.kubeconfig)
    try:
        client = KubeClient(connection)
        await client.request(
            "DELETE", "/api/v1/nodes", query={"labelSelector": f"vknode.dev/managed-by={name}"}
        )
    finally:
        await connection.close()


async def test_200_cells_become_ready_nodes_with_few_requests(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    cells = [cell(f"{agent}-{i}", zone=f"z{i % 3}") for i in range(200)]
    async with node_side(control_plane, agent, "az1") as side:
        side.links["az1"].announce(*cells)
        await asyncio.wait_for(side.nodes.wait_registered(), 2 * PATIENCE)

        async def leased() -> bool:
            return side.leases.stats.creates == 200

        await side.until(leased)
        listed = json.loads(
            await side.look.get(
                "/api/v1/nodes", query={"labelSelector": f"vknode.dev/managed-by={agent}"}
            )
        )["items"]
        assert len(listed) == 200
        node = listed[0]
        assert node["spec"]["providerID"].startswith("vknode://az1/")
        assert node["status"]["declaredFeatures"] == list(DECLARED_FEATURES)
        # One POST a Node and one a Lease; the list and the watch; nothing is written twice.
        requests = side.client.stats.requests
        assert requests["POST"] <= 400 + 5  # and some events
        assert requests.get("PATCH", 0) == 0
        assert requests["GET"] <= 4
        lease = json.loads(
            await side.look.get(
                f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{agent}-7"
            )
        )
        assert lease["spec"]["holderIdentity"] == f"{agent}-7"
        assert lease["spec"]["leaseDurationSeconds"] == 40
        [owner] = lease["metadata"]["ownerReferences"]
        there = await side.node(f"{agent}-7")
        assert there is not None
        assert (owner["kind"], owner["uid"]) == ("Node", there["metadata"]["uid"])
        assert len(asyncio.all_tasks()) < 40  # no task a node


async def test_leases_are_renewed_and_survive_deletion_and_foreign_edits(
    control_plane: ControlPlaneHandle, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Renewals this frequent would give a slow API server one second.
    monkeypatch.setattr(LeaseKeeper, "_timeout", PATIENCE)
    async with node_side(control_plane, agent, "az1", renew=0.4) as side:
        side.links["az1"].announce(cell(agent))
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{agent}"

        async def renewals(count: int) -> None:
            async def so() -> bool:
                return side.leases.stats.renewals >= count

            await side.until(so)

        await renewals(3)
        await side.look.patch(path, b'{"metadata":{"labels":{"a":"b"}}}')
        await renewals(side.leases.stats.renewals + 3)
        lease = json.loads(await side.look.get(path))
        assert lease["metadata"]["labels"] == {"a": "b"}
        await side.look.delete(path)

        async def back() -> bool:
            try:
                again = json.loads(await side.look.get(path))
            except ApiError:
                return False
            return bool(again["metadata"]["uid"] != lease["metadata"]["uid"])

        await side.until(back)
        await renewals(side.leases.stats.renewals + 2)
        assert side.leases.stats.failures == 0
        assert side.leases.oldest_renewal_age() < 5


async def test_a_deleted_node_comes_back_and_its_lease_follows(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    async with node_side(control_plane, agent, "az1", renew=0.4) as side:
        side.links["az1"].announce(cell(agent))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        before = await side.node(agent)
        assert before is not None
        await asyncio.to_thread(control_plane.kubectl, "delete", "node", agent)

        async def back() -> bool:
            node = await side.node(agent)
            return node is not None and node["metadata"]["uid"] != before["metadata"]["uid"]

        await side.until(back)

        async def answered() -> bool:
            # The API server shows it before its answer to the agent has arrived.
            return side.nodes.stats.recreated >= 1 and side.nodes.identity(agent) is not None

        await side.until(answered)
        assert side.nodes.stats.recreated == 1
        identity = side.nodes.identity(agent)

        async def lease_follows() -> bool:
            try:
                lease = json.loads(
                    await side.look.get(
                        f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{agent}"
                    )
                )
            except ApiError:
                return False
            return identity is not None and any(
                o["uid"] == identity.uid for o in lease["metadata"]["ownerReferences"]
            )

        await side.until(lease_follows)


async def test_health_reaches_exactly_its_own_node(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    a, b = f"{agent}-a", f"{agent}-b"
    async with node_side(control_plane, agent, "az1", "az2") as side:
        side.links["az1"].announce(cell(a))
        side.links["az2"].announce(cell(b))
        await side.until_ready(a, "True", "KubeletReady")
        await side.until_ready(b, "True", "KubeletReady")
        side.links["az1"].announce(
            cell(a, health=cell_pb2.HEALTH_UNHEALTHY, health_reason="RackPower")
        )
        await side.until_ready(a, "False", "RackPower")
        side.links["az1"].announce(cell(a))
        await side.until_ready(a, "True", "KubeletReady")
        side.links["az2"].lose()
        await side.until_ready(b, "False", "PoolUnreachable")
        assert (await side.ready(a))[0] == "True"

        async def told() -> bool:
            # By the node controller, which looks once a second.
            text = await asyncio.to_thread(control_plane.kubectl, "describe", "node", b)
            return "NodeNotReady" in text

        await side.until(told)
        side.links["az2"].announce(cell(b))
        await side.until_ready(b, "True", "KubeletReady")


async def test_a_pools_restart_within_the_limit_writes_nothing(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    async with node_side(control_plane, agent, "az1", unreachable_after=PATIENCE) as side:
        side.links["az1"].announce(cell(agent))
        await side.until_ready(agent, "True", "KubeletReady")
        before = side.client.stats.requests.get("PATCH", 0)
        side.links["az1"].lose()
        await asyncio.sleep(1.0)  # the outage itself
        side.links["az1"].announce(cell(agent))
        await asyncio.sleep(0.5)  # long enough for a wrong PATCH
        assert side.client.stats.requests.get("PATCH", 0) == before


async def test_a_new_agent_adopts_and_puts_right_what_happened_meanwhile(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    async with node_side(control_plane, agent, "az1") as side:
        side.links["az1"].announce(cell(agent), cell(f"{agent}-2"))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
        uid = (side.nodes.identity(agent) or (0, 0))[1]
        # as the node lifecycle controller does when leases run out
        await side.look.patch_status(
            f"/api/v1/nodes/{agent}",
            b'{"status":{"conditions":[{"type":"Ready","status":"Unknown",'
            b'"reason":"NodeStatusUnknown"}]}}',
        )
    async with node_side(control_plane, agent, "az1", unreachable_after=1.5) as side:

        async def adopted() -> bool:
            return side.nodes.node_names == {agent, f"{agent}-2"}

        await side.until(adopted)
        side.links["az1"].announce(cell(agent), cell(f"{agent}-2"))
        await side.until_ready(agent, "True", "KubeletReady")
        identity = side.nodes.identity(agent)
        assert identity is not None and identity.uid == uid
        assert side.nodes.stats.created == 0
    # the pool never answers this one: found Nodes go NotReady after the limit, not before
    async with node_side(control_plane, agent, "az1", unreachable_after=0.5) as side:
        await side.until_ready(agent, "False", "PoolUnreachable")


async def test_a_foreign_node_of_the_name_is_left_alone_and_said(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    name = f"{agent}-foreign"
    async with node_side(control_plane, agent, "az1") as side:
        await side.look.create(
            "/api/v1/nodes",
            json.dumps({"metadata": {"name": name, "labels": {"mine": "yes"}}}).encode(),
        )
        try:
            side.links["az1"].announce(cell(name), cell(f"{agent}-b"))
            await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
            assert "was not made by vknode" in side.nodes.refused[name]
            assert side.nodes.identity(name) is None
            assert side.nodes.identity(f"{agent}-b") is not None
            there = await side.node(name)
            assert there is not None and "providerID" not in there["spec"]
        finally:
            await side.look.delete(f"/api/v1/nodes/{name}")


async def test_of_two_pools_with_the_same_cell_the_first_has_the_node(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    """Also at a start: a pool that claims another's cells must not keep the agent down."""
    with structlog.testing.capture_logs() as lines:
        async with node_side(control_plane, agent, "az1", "az2", unreachable_after=20) as side:
            side.links["az1"].announce(cell(agent))
            await side.until_ready(agent, "True", "KubeletReady")
            side.links["az2"].announce(cell(agent), cell(f"{agent}-b"))
            await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
            await side.until_ready(f"{agent}-b", "True", "KubeletReady")
            identity = side.nodes.identity(agent)
            assert identity is not None and identity.pool == "az1"
    [refused] = [line for line in lines if line["event"] == "cell_refused"]
    assert (refused["pool"], refused["cell"]) == ("az2", agent)
    assert "'az1'" in refused["problem"] and "'az2'" in refused["problem"]


async def test_a_cell_that_went_is_not_ready_at_once_and_deleted_later(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    a, b = f"{agent}-a", f"{agent}-b"
    async with node_side(control_plane, agent, "az1", gone_after=10.0) as side:
        side.links["az1"].announce(cell(a), cell(b))
        await side.until_ready(b, "True", "KubeletReady")
        side.links["az1"].announce(cell(a))
        await side.until_ready(b, "False", "CellGone")

        async def deleted() -> bool:
            return await side.node(b) is None

        await side.until(deleted)

        async def forgotten() -> bool:
            # The API server shows it before its answer to the agent has arrived.
            return side.nodes.node_names == {a}

        await side.until(forgotten)
        assert len(side.leases) == 1
        side.links["az1"].announce(cell(a), cell(b))
        await side.until_ready(b, "True", "KubeletReady")


async def test_cells_beyond_the_limit_are_named_once_and_wait_for_a_place(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    names = [f"{agent}-{number}" for number in range(20)]
    pool = f"{agent}-pool"
    with structlog.testing.capture_logs() as lines:
        async with node_side(control_plane, agent, pool, gone_after=0.2, max_cells=2) as side:
            link, cells = side.links[pool], [cell(name) for name in names]
            link.cells_left_out = 5
            link.announce(*cells)
            await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
            assert side.nodes.node_names == set(names[:2])
            link.announce(*cells[1:])
            # The first one's place is the third one's once its Node is deleted.
            await side.until_ready(names[2], "True", "KubeletReady")
            assert await side.node(names[0]) is None
            assert side.nodes.node_names == {names[1], names[2]}
            assert side.nodes.cells_beyond() == {pool: 22.0}
            link.cells_left_out = 0
            link.announce(*cells[1:3])

            async def none_is_refused() -> bool:
                return side.nodes.cells_beyond() == {pool: 0.0}

            await side.until(none_is_refused)
    told = [line for line in lines if line["event"] == "pool_has_too_many_cells"]
    assert [(line["pool"], line["beyond"], line["cells"]) for line in told] == [
        (pool, 23, names[2:7])
    ]


async def test_no_node_is_lost_to_a_limit_that_was_lowered(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    """Through the real link, which hears the pool before the agent knows its Nodes."""
    pool, names = f"{agent}-pool", [f"{agent}-{number}" for number in range(12)]
    ours = names[6:]
    async with node_side(control_plane, agent, pool) as side:
        side.links[pool].announce(*map(cell, ours))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
    said = [change(*names, snapshot=True), change("one-more"), change(*names, snapshot=True)]
    link = Link(pool, lambda up, down: Announcer(*said), most_without_node=2)
    link.serve(Nobody())
    heard = asyncio.create_task(link.run())
    with structlog.testing.capture_logs() as lines:
        async with node_side(control_plane, agent, max_cells=1, links=[link]) as side:
            await asyncio.wait_for(heard, PATIENCE)
            await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)
            for name in ours:
                await side.until_ready(name, "True", "KubeletReady")
            assert side.nodes.node_names == set(ours)
            assert side.nodes.cells_beyond() == {pool: 6.0}
            assert set(link.cells) == {*ours, *names[:2]}
    assert not [line for line in lines if line["event"] in ("cell_gone", "node_not_ready")]
    told = [line for line in lines if line["event"] == "pool_has_too_many_cells"]
    assert len(told) == 1 and "raise pools[].maxCells" in told[0]["hint"]


async def test_drain_and_label_drift(control_plane: ControlPlaneHandle, agent: str) -> None:
    async with node_side(control_plane, agent, "az1") as side:
        side.links["az1"].announce(cell(agent, draining=True))
        await asyncio.wait_for(side.nodes.wait_registered(), PATIENCE)

        async def unschedulable(wanted: bool) -> bool:
            node = await side.node(agent)
            return node is not None and node["spec"].get("unschedulable", False) is wanted

        await side.until(lambda: unschedulable(True))
        side.links["az1"].announce(cell(agent))
        await side.until(lambda: unschedulable(False))
        await side.look.patch(
            f"/api/v1/nodes/{agent}",
            b'{"metadata":{"labels":{"topology.kubernetes.io/zone":"lie"}}}',
        )

        async def zone_right() -> bool:
            node = await side.node(agent)
            labels = node["metadata"]["labels"] if node else {}
            return labels.get("topology.kubernetes.io/zone") == "az1"

        await side.until(zone_right)


async def test_an_absent_api_server_costs_no_node_its_readiness(
    control_plane: ControlPlaneHandle, agent: str
) -> None:
    plane = control_plane.control_plane
    proxy = FaultProxy(
        upstream=plane.url,
        upstream_ca=plane.authority.cert,
        serving=plane.authority.issue("node-proxy", "node-proxy", ips=["127.0.0.1"]),
    )
    await proxy.start()
    a, b = f"{agent}-a", f"{agent}-b"
    try:
        proxy.fail(429, method="POST", count=2, retry_after=1)
        proxy.fail(500, method="POST", path="/nodes$", count=3)
        proxy.fail(500, method="POST", path="/nodes$", count=1, lost_answer=True)
        async with node_side(control_plane, agent, "az1", renew=0.4, server=proxy.url) as side:
            side.links["az1"].announce(cell(a), cell(b))
            await side.until_ready(a, "True", "KubeletReady")
            await side.until_ready(b, "True", "KubeletReady")
            for how in ("reset", "hang"):
                failures = side.leases.stats.failures
                await proxy.cut(how=how)
                # what changes meanwhile is reported afterwards
                side.links["az1"].announce(
                    cell(a), cell(b, health=cell_pb2.HEALTH_UNHEALTHY, health_reason="Fan")
                )

                async def failing(before: int = failures) -> bool:
                    return side.leases.stats.failures > before

                await side.until(failing)
                await asyncio.sleep(1.0)  # the outage itself
                assert (await side.ready(b))[0] == "True"
                await proxy.mend()
                await side.until_ready(b, "False", "Fan")
                assert (await side.ready(a))[0] == "True"

                async def renewing() -> bool:
                    return side.leases.oldest_renewal_age() < 1.0

                await side.until(renewing)
                side.links["az1"].announce(cell(a), cell(b))
                await side.until_ready(b, "True", "KubeletReady")
            assert side.nodes.stats.recreated == 0
    finally:
        await proxy.stop()


async def test_events_are_counted_and_found_by_kubectl(
    control_plane: ControlPlaneHandle, namespace: str
) -> None:
    connection = await connect(control_plane.kubeconfig)
    recorder = EventRecorder(KubeClient(connection))
    task = asyncio.create_task(recorder.run())
    try:
        ref = ObjectRef("Pod", namespace, "web", "u-1")
        for _ in range(3):
            recorder.event(ref, "cell-1", NORMAL, "Pulled", "image is there")
            assert await recorder.drain(PATIENCE)
        listed = json.loads(
            await recorder._client.get(
                f"/api/v1/namespaces/{namespace}/events",
                query={"fieldSelector": "source=kubelet,reason=Pulled"},
            )
        )["items"]
        [event] = listed
        assert event["count"] == 3
        assert event["source"] == {"component": "kubelet", "host": "cell-1"}
        assert event["involvedObject"]["uid"] == "u-1"
        # a namespace that is not there: dropped, and the recorder goes on
        recorder.event(ObjectRef("Pod", "no-such", "x", "u"), "n", NORMAL, "R", "m")
        assert await recorder.drain(PATIENCE)
        assert recorder.stats.failed == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()
