"""A world for each test: the session's control plane, a node of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.agent.world import World
from tests.conftest import ControlPlaneHandle
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import ApiError


@pytest.fixture
async def world(control_plane: ControlPlaneHandle, namespace: str) -> AsyncIterator[World]:
    connection = await connect(control_plane.kubeconfig)
    client = KubeClient(connection)
    world = World(client, namespace, control_plane.kubeconfig)
    yield world
    try:
        await client.delete(f"/api/v1/nodes/{world.node}")
    except ApiError as error:
        assert error.is_not_found
    await connection.close()
