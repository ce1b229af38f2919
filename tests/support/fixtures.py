"""Whole clusters for tests: the control plane, pools and the agent, as `vknode dev` runs them.

One of each kind a session; every test has a namespace of its own.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.clusters import ClusterThread, running
from tests.support.kube import Kube
from vknode.devcluster.cluster import DevCluster, Refused, refuse_without_privileges
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE, ProgramsMissing
from vknode.devcluster.programs.provide import require


@dataclass(frozen=True)
class Running:
    """A cluster that runs in a thread, with the administrator's kubectl."""

    cluster: DevCluster
    thread: ClusterThread
    kube: Kube

    def agent_log(self) -> str:
        agent = self.cluster.agent
        return agent.log.read_text(errors="replace") if agent else ""


@contextmanager
def started(**options: object) -> Iterator[Running]:
    """A cluster of these DevCluster options; at the end no child may have crashed."""
    with running(lambda folder: DevCluster(folder, **options)) as (cluster, thread):  # type: ignore[arg-type]  # options are DevCluster's own
        program = cluster.kubectl.program
        yield Running(cluster, thread, Kube(program, cluster.kubeconfig, "default"))
        assert not cluster.crashes, "\n".join(map(str, cluster.crashes))


@contextmanager
def own_namespace(kube: Kube, title: str) -> Iterator[Kube]:
    """kubectl in a fresh namespace, which is deleted afterwards without waiting."""
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
    name = f"{stem or 'test'}-{uuid.uuid4().hex[:6]}"
    kube.out("create", "namespace", name)
    inside = replace(kube, namespace=name)
    inside.out("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    inside.out("wait", "--for=create", "configmap/kube-root-ca.crt", "--timeout=30s")
    try:
        yield inside
    finally:
        kube.out("delete", "namespace", name, "--wait=false")


def have(programs: tuple[str, ...]) -> dict[str, Path]:
    """The programs' places; skips, with the command that provides them, if some lack."""
    try:
        return dict(require(programs))
    except ProgramsMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def cri() -> Iterator[Running]:
    """Three zones of two cells on three real containerds."""
    have(CONTROL_PLANE + CONTAINERD)
    try:
        refuse_without_privileges()
    except Refused as problem:
        pytest.skip(str(problem))
    with started(runtime="cri", zones=3, cells_per_zone=2) as cluster:
        yield cluster


@pytest.fixture
def kube(cri: Running, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """kubectl in a namespace of its own, on nodes with real containers."""
    with own_namespace(cri.kube, request.node.name) as inside:
        yield inside


@pytest.fixture(scope="session")
def sim() -> Iterator[Running]:
    """Three zones of two cells with simulated sandboxes, and the fault proxy between agent
    and API server."""
    have(CONTROL_PLANE)
    with started(runtime="sim", zones=3, cells_per_zone=2, fault_proxy=True) as cluster:
        yield cluster


@pytest.fixture
def sim_kube(sim: Running, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """kubectl in a namespace of its own, on nodes with simulated sandboxes."""
    with own_namespace(sim.kube, request.node.name) as inside:
        yield inside
