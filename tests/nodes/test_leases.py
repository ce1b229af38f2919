"""How long a Lease that could not be renewed waits for its next try."""

from __future__ import annotations

import pytest

from tests.kube.scripted import plain_connection
from vknode.agent.leases import LeaseKeeper
from vknode.kube.client import KubeClient


@pytest.mark.parametrize(("luck", "longest"), [(1.0, 7.0), (0.5, 4.67), (0.0, 2.33)])
async def test_it_is_tried_again_within_seven_seconds(luck: float, longest: float) -> None:
    connection = plain_connection("http://127.0.0.1:1")
    leases = LeaseKeeper(KubeClient(connection), rand=lambda: luck)
    leases.add("node-1", "uid")
    backoff = leases._leases["node-1"].backoff
    delays = [backoff.next() for _ in range(100)]
    assert max(delays) == delays[-1] == pytest.approx(longest, abs=0.01)
    await connection.close()
