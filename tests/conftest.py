"""Fixtures that several folders share: the session's real control plane."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests.clusters import ClusterThread, running
from tests.support import loops
from tests.support.fixtures import cri, kube, sim, sim_kube
from vknode.devcluster.cluster import DevCluster
from vknode.devcluster.controlplane import ControlPlane
from vknode.devcluster.kubectl import Kubectl
from vknode.devcluster.pki import KeyPair
from vknode.devcluster.programs.catalog import CONTROL_PLANE, ProgramsMissing
from vknode.devcluster.programs.provide import require

# A shell without job control starts its background jobs with SIGINT ignored, and children would
# inherit that: Ctrl-C in a test's terminal would then do nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

loops.install()

# Property tests have the same examples each time, so that a run fails for what has changed and not
# by luck. `make fuzz` has others, and more. How long an example takes says something of the machine
# only: by default one of more than 200 ms, or slow drawing, would be a failure.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "others", settings.get_profile("same"), derandomize=False, max_examples=1000
)
settings.load_profile("same")

_constants_of_loaded_modules = providers._get_local_constants


def _constants() -> Constants:
    """Hypothesis also picks from the constants in whatever modules are loaded by then: a test alone
    would have other examples than in a run of all, and with each commit again others."""
    same = settings.get_current_profile_name() == "same"
    return Constants() if same else _constants_of_loaded_modules()


providers._get_local_constants = _constants

#: Fixtures of whole clusters, shared by every folder.
__all__ = ["cri", "kube", "sim", "sim_kube"]


@dataclass(frozen=True)
class ControlPlaneHandle:
    """A real control plane without nodes. `kubectl(...)` runs the real kubectl as the
    administrator and returns its standard output."""

    url: str
    kubeconfig: Path
    ca: Path
    admin: KeyPair
    kubectl: Kubectl
    control_plane: ControlPlane
    cluster: DevCluster
    thread: ClusterThread


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder with a path short enough for Unix sockets (`tmp_path` is not)."""
    folder = Path(tempfile.mkdtemp(prefix="vkn-"))
    yield folder
    shutil.rmtree(folder, onerror=_unless_gone)


def _unless_gone(remove: object, path: str, error: Any) -> None:
    """What just ends may take its own files away while others are removed."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


@pytest.fixture(scope="session")
def control_plane_programs() -> dict[str, Path]:
    """The control plane's programs; skips, with the command that provides them, if missing."""
    try:
        return require(CONTROL_PLANE)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def control_plane(control_plane_programs: dict[str, Path]) -> Iterator[ControlPlaneHandle]:
    """One real control plane for the whole session: etcd, kube-apiserver (Node,RBAC),
    kube-controller-manager, kube-scheduler; no nodes. Ready in about 4 s."""
    with running(
        lambda folder: DevCluster(folder, zones=0, agent=False, programs=control_plane_programs)
    ) as (cluster, thread):
        plane = cluster.control_plane
        yield ControlPlaneHandle(
            url=plane.url,
            kubeconfig=cluster.kubeconfig,
            ca=plane.authority.cert,
            admin=plane.admin,
            kubectl=cluster.kubectl,
            control_plane=plane,
            cluster=cluster,
            thread=thread,
        )
        assert not cluster.crashes, "\n".join(map(str, cluster.crashes))


@pytest.fixture
def namespace(control_plane: ControlPlaneHandle, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own on the session's control plane, ready for Pods (its
    `default` ServiceAccount and `kube-root-ca.crt` exist), deleted afterwards without waiting."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{stem or 'test'}-{uuid.uuid4().hex[:6]}"
    kubectl = control_plane.kubectl
    kubectl("create", "namespace", name)
    for made in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
        kubectl("wait", "-n", name, "--for=create", made, "--timeout=120s", timeout=150)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
