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
from typing import Any

import pytest

from tests.clusters import ClusterThread, running
from tests.support import rights
from tests.support.kube import Kube
from vknode.devcluster.cluster import DevCluster, Refused, refuse_without_privileges
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE, ProgramsMissing
from vknode.devcluster.programs.provide import require

#: A cell and a folder of its host that namespaces named opened-… may use (`CRI`).
OPENED_CELL = "az1-a"
OPENED_FOLDER = Path("/tmp/vknode-opened")
#: Three zones of two cells on three real containerds. The pools allow what Pods want of their host;
#: the agent's configuration keeps it closed but for two kinds of namespaces, as an operator may.
CRI: dict[str, Any] = {
    "runtime": "cri",
    "zones": 3,
    "cells_per_zone": 2,
    "pool_flags": (
        "--allow-privileged",
        "--allow-host-namespaces",
        "--allow-host-path=/tmp",
        "--allow-unsafe-sysctl=kernel.msg*",
    ),
    "agent_config": {
        "privileges": [
            {
                "namespaces": ["opened-*"],
                "cells": [OPENED_CELL],
                "allow": {
                    "hostPath": [str(OPENED_FOLDER)],
                    "hostNetwork": True,
                    "hostPID": True,
                    "hostIPC": True,
                    "privileged": True,
                    "capabilities": ["SYS_ADMIN"],
                    "unsafeSysctls": ["kernel.msg*"],
                    "unconfined": True,
                },
            },
            {  # scenarios that show to a kubelet and to us what a container can be given
                "namespaces": ["security-*"],
                "allow": {"capabilities": ["NET_ADMIN"], "unconfined": True},
            },
            {"namespaces": ["volumes-host-path-*"], "allow": {"hostPath": ["/tmp"]}},
        ]
    },
}


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
    """A cluster of these DevCluster options; at the end no child may have crashed, and the agent
    have asked nothing that docs/agent-rights.md does not list."""
    options = {"audit_users": [rights.AGENT], **options}
    with running(lambda folder: DevCluster(folder, **options)) as (cluster, thread):  # type: ignore[arg-type]  # options are DevCluster's own
        program = cluster.kubectl.program
        nodes = set(cluster.node_names)  # a test may take cells away
        yield Running(cluster, thread, Kube(program, cluster.kubeconfig, "default"))
        assert not cluster.crashes, "\n".join(map(str, cluster.crashes))
        seen = rights.requests(cluster.state.logs / "audit.log")
        unlisted = rights.unlisted(seen, nodes.union(cluster.node_names))
        assert not unlisted, "not in docs/agent-rights.md: " + "; ".join(unlisted)


@contextmanager
def own_namespace(kube: Kube, title: str) -> Iterator[Kube]:
    """kubectl in a fresh namespace, which is deleted afterwards without waiting."""
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
    name = f"{stem or 'test'}-{uuid.uuid4().hex[:6]}"
    kube.out("create", "namespace", name)
    inside = replace(kube, namespace=name)
    for made in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
        inside.out("wait", "--for=create", made, "--timeout=110s")
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
    with started(**CRI) as cluster:
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
