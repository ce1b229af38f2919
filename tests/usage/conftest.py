"""A cluster with a real metrics-server, and kubectl in a namespace of its own there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fixtures import Running, have, own_namespace, started
from tests.support.kube import Kube
from vknode.devcluster.cluster import Refused, refuse_without_privileges
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE, METRICS_SERVER


@pytest.fixture(scope="package")
def measured() -> Iterator[Running]:
    """Two zones of two cells on two real containerds, and a real metrics-server."""
    have((*CONTROL_PLANE, *CONTAINERD, METRICS_SERVER))
    try:
        refuse_without_privileges()
    except Refused as problem:
        pytest.skip(str(problem))
    with started(runtime="cri", zones=2, cells_per_zone=2, metrics_server=True) as cluster:
        yield cluster


@pytest.fixture
def kube(measured: Running, request: pytest.FixtureRequest) -> Iterator[Kube]:
    with own_namespace(measured.kube, request.node.name) as inside:
        yield inside
