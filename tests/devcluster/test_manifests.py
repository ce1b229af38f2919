"""The manifests for a real cluster: rendered by kubectl, applied to a real API server,
and giving the agent what it needs and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ControlPlaneHandle
from tests.support.until import until
from vknode.agent.config import load_config
from vknode.devcluster.identity import manifests_folder

pytestmark = pytest.mark.cluster

AGENT = "--as=system:serviceaccount:vknode-system:vknode-agent"


@pytest.fixture(scope="module")
def applied(control_plane: ControlPlaneHandle) -> Iterator[ControlPlaneHandle]:
    kubectl = control_plane.kubectl
    base = str(manifests_folder() / "base")
    kubectl("apply", "--server-side", "-k", base)
    # What may not be done is asked of an authorizer that knows the rest.
    last = ("auth", "can-i", "impersonate", "groups/system:nodes", "--all-namespaces", AGENT)
    until(lambda: kubectl.run(*last, check=False).returncode == 0, "the rights are there")
    yield control_plane
    kubectl("delete", "-k", base, "--wait=false")


def test_the_base_applies(applied: ControlPlaneHandle) -> None:
    said = applied.kubectl("get", "deploy,daemonset,configmap", "-n", "vknode-system", "-o", "name")
    assert "deployment.apps/vknode-agent" in said and "daemonset.apps/vknode-pool" in said


@pytest.mark.parametrize(
    ("verb", "what", "namespace", "allowed"),
    [
        ("create", "nodes", "", True),
        ("patch", "nodes/status", "", True),
        ("watch", "pods", "", True),
        ("get", "pods", "default", True),
        ("create", "events", "default", True),
        ("update", "leases.coordination.k8s.io", "kube-node-lease", True),
        ("impersonate", "users/system:node:az1-a", "", True),
        ("create", "tokenreviews.authentication.k8s.io", "", True),
        ("create", "subjectaccessreviews.authorization.k8s.io", "", True),
        ("impersonate", "groups/system:nodes", "", True),
        ("update", "leases.coordination.k8s.io", "kube-system", False),
        ("get", "secrets", "default", False),
        ("list", "secrets", "", False),
        ("get", "configmaps", "default", False),
        ("create", "serviceaccounts/token", "default", False),
        ("create", "pods", "default", False),
        ("create", "pods/exec", "default", False),
        # Statuses and ends of Pods are written as their node.
        ("patch", "pods/status", "default", False),
        ("delete", "pods", "default", False),
        ("update", "nodes", "", False),
        ("get", "nodes/proxy", "", False),
        ("create", "nodes/proxy", "", False),
        ("delete", "leases.coordination.k8s.io", "kube-node-lease", False),
        ("impersonate", "users/system:node:somebody-elses", "", False),
        ("impersonate", "users/vknode-admin", "", False),
        ("impersonate", "groups/system:masters", "", False),
        ("impersonate", "serviceaccounts/default", "default", False),
    ],
)
def test_the_agents_rights(
    applied: ControlPlaneHandle, verb: str, what: str, namespace: str, allowed: bool
) -> None:
    resource, _, rest = what.partition("/")
    arguments = [verb, what]
    if rest and verb != "impersonate":
        arguments = [verb, resource, f"--subresource={rest}"]
    scope = ["-n", namespace] if namespace else ["--all-namespaces"]

    def said() -> str:
        done = applied.kubectl.run("auth", "can-i", *arguments, *scope, AGENT, check=False)
        assert done.stdout, done.stderr
        return done.stdout.decode().strip()

    if allowed:  # the authorizer learns of what was applied by a watch
        until(lambda: said() == "yes", "the agent may do this", show=said)
    else:
        assert said() == "no"


def test_the_configuration_is_one_the_agent_takes(tmp_path: Path) -> None:
    # Certificates come from a Secret: here they only have to exist.
    text = (manifests_folder() / "base" / "agent.yaml").read_text()
    for name in {
        word for word in text.replace("}", " ").replace(",", " ").split() if "/tls/" in word
    }:
        (tmp_path / Path(name).name).touch()
    (tmp_path / "agent.yaml").write_text(text.replace("/etc/vknode/tls", str(tmp_path)))
    config = load_config(tmp_path / "agent.yaml")
    assert [pool.name for pool in config.pools] == ["az1"]
    assert config.kubeconfig is None


def test_examples_are_plain_kubernetes() -> None:
    for path in (manifests_folder() / "examples").glob("*.yaml"):
        text = path.read_text()
        kinds = [one["kind"] for one in yaml.safe_load_all(text) if one]
        assert kinds, path
        assert "vknode" not in "\n".join(
            line for line in text.splitlines() if not line.lstrip().startswith("#")
        ), path
