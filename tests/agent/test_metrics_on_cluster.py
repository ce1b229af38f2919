"""The agent's metrics while it works, on the real control plane: what an operator would look at."""

from __future__ import annotations

from dataclasses import replace

import aiohttp
import pytest

from tests.agent.world import World
from vknode.agent import metric_families as families
from vknode.agent.config import LeaseConfig
from vknode.pool.errors import RETRYABLE, UNSUPPORTED_FIELD, PoolFailure

pytestmark = pytest.mark.cluster


async def test_a_start_is_seen_in_the_metrics_and_nobodys_name(world: World) -> None:
    async with world.agent() as agent:
        value = agent.metrics.value
        uid = await world.create("somebodys-name")
        await world.phase("Running", "somebodys-name")
        await world.until(lambda: "status_written" in str(agent.metrics.timings.as_json()))
        await world.until(lambda: value(families.NODES, "az1", "ready") == 1)
        assert value(families.READY) == 1
        assert value(families.PODS_ASSIGNED) == 1
        assert value(families.SANDBOXES, "az1") == 1
        assert value(families.LEASES) == 1
        await world.until(lambda: (value(families.LEASE_RENEWALS) or 0) >= 1)
        assert 0 <= (value(families.LEASE_AGE) or 0) < 40 == value(families.LEASE_DURATION)
        assert value(families.POOL_STATE, "az1", "reachable") == 1
        assert value(families.POOL_STATE, "az1", "unreachable") == 0
        assert (value(families.STATUS_PATCHES, "written") or 0) >= 1
        for watch in ("nodes", "pods", "services"):
            assert 0 <= (value(families.WATCH_SILENCE, watch) or 0) < 30
        assert (value(families.WATCH_EVENTS, "pods") or 0) >= 1
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{agent.metrics_address}/metrics") as response,
        ):
            text = await response.text()
        for phase in ("ask", "accept", "total", "write"):
            line = f'vknode_pod_start_duration_seconds_count{{phase="{phase}"}} 1.0'
            assert line in text
        assert 'vknode_pod_sync_duration_seconds_count{action="create"} 1.0' in text
        for secret in (uid, "somebodys-name", world.namespace, world.node):
            assert secret not in text


async def test_refused_pods_and_failing_pools_are_counted(world: World) -> None:
    async with world.agent() as agent:
        world.pool.create_failures = [
            PoolFailure(RETRYABLE, "busy"),
            PoolFailure(UNSUPPORTED_FIELD, "not here", field="containers[0].tty"),
        ]
        await world.create()
        await world.phase("Failed")
        value = agent.metrics.value
        assert value(families.POOL_ERRORS, "az1", "retryable") == 1
        assert value(families.POOL_ERRORS, "az1", "unsupported_field") == 1
        assert value(families.PODS_REFUSED, "UnsupportedField") == 1


async def test_another_writer_of_a_lease_is_seen(world: World) -> None:
    world.config = replace(world.config, lease=LeaseConfig(renew=0.5))
    async with world.agent() as agent:
        await world.until(lambda: (agent.metrics.value(families.LEASE_RENEWALS) or 0) >= 1)
        before = agent.metrics.value(families.LEASE_CONFLICTS)
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{world.node}"
        await world.client.patch(path, b'{"spec":{"holderIdentity":"somebody-else"}}')
        await world.until(
            lambda: agent.metrics.value(families.LEASE_CONFLICTS) == (before or 0) + 1
        )
