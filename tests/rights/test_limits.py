"""What the agent cannot do with the credentials that it has: read what no Pod of its nodes refers
to, change another node or its Pods, act as anybody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import pytest

from tests.support.fixtures import Running
from tests.support.kube import Kube, simple_pod
from tests.support.until import until
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import ApiError

pytestmark = pytest.mark.cluster

NODE, OTHER = "az1-a", "az2-a"


@pytest.fixture
def agent(sim: Running, sim_kube: Kube) -> Callable[..., str]:
    """kubectl with the agent's own credentials, as itself or as one of its nodes: standard output,
    or what the API server answered that it may not."""
    inside = replace(sim_kube, kubeconfig=sim.cluster.state.run / "agent.kubeconfig")

    def ask(*arguments: str, node: str = "") -> str:
        impersonation = (f"--as=system:node:{node}", "--as-group=system:nodes") if node else ()
        done = inside.run(*arguments, *impersonation, check=False)
        if done.returncode == 0:
            return done.stdout
        assert "orbidden" in done.stderr, done.stderr
        return "forbidden"

    return ask


def using(secret: str, node: str) -> dict[str, object]:
    return simple_pod(
        f"on-{node}",
        nodeName=node,
        volumes=[{"name": "v", "secret": {"secretName": secret}}],
        container={"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
    )


def test_a_secret_is_read_only_as_a_node_with_a_pod_that_uses_it(
    sim_kube: Kube, agent: Callable[..., str]
) -> None:
    for name in ("used", "unused"):
        sim_kube.out("create", "secret", "generic", name, "--from-literal=word=xyzzy")
    read = ("get", "secret", "used", "-o", "jsonpath={.data.word}")
    assert agent(*read, node=NODE) == "forbidden"
    sim_kube.apply(using("used", NODE))
    sim_kube.wait_phase(f"on-{NODE}", "Running")
    assert agent(*read, node=NODE) == "eHl6enk="
    assert agent(*read, node=OTHER) == "forbidden"
    assert agent(*read) == "forbidden"
    assert agent("get", "secret", "unused", node=NODE) == "forbidden"
    for node in ("", NODE):
        assert agent("get", "secrets", node=node) == "forbidden"
        assert agent("get", "secrets", "--all-namespaces", node=node) == "forbidden"
        assert agent("get", "configmap", "-n", "kube-system", "--all-namespaces", node=node) == (
            "forbidden"
        )
    # And no more, when the Pod is gone: the authorizer learns of that through a watch of its own.
    sim_kube.out("delete", "pod", f"on-{NODE}", "--wait=true")
    until(lambda: agent(*read, node=NODE) == "forbidden", "it may not read that any more")


def test_a_token_is_only_for_the_pods_of_its_node(
    sim_kube: Kube, agent: Callable[..., str]
) -> None:
    sim_kube.out("create", "serviceaccount", "mine")
    sim_kube.apply(simple_pod("it", nodeName=NODE, serviceAccountName="mine"))
    uid = sim_kube.wait_phase("it", "Running")["metadata"]["uid"]
    bound = ("--bound-object-kind=Pod", "--bound-object-name=it", f"--bound-object-uid={uid}")
    assert agent("create", "token", "mine", *bound, node=NODE).count(".") == 2
    assert agent("create", "token", "mine", *bound, node=OTHER) == "forbidden"
    assert agent("create", "token", "mine", *bound) == "forbidden"
    assert agent("create", "token", "mine", node=NODE) == "forbidden"


async def test_a_node_changes_no_other_node_and_not_its_pods(sim: Running, sim_kube: Kube) -> None:
    """NodeRestriction, for the nodes that the agent acts as. Each request alone: kubectl would
    read first, and may not even that."""
    sim_kube.apply(simple_pod("it", nodeName=NODE))
    sim_kube.wait_phase("it", "Running")
    connection = await connect(sim.cluster.state.run / "agent.kubeconfig")
    client = KubeClient(connection)
    pod = f"/api/v1/namespaces/{sim_kube.namespace}/pods/it"

    async def forbidden(request: Awaitable[bytes]) -> None:
        with pytest.raises(ApiError) as caught:
            await request
        assert caught.value.status == 403, caught.value

    def labelled(node: str, key: str, actor: str | None) -> Awaitable[bytes]:
        body = msgspec.json.encode({"metadata": {"labels": {key: "x"}}})
        return client.patch(f"/api/v1/nodes/{node}", body, impersonate=actor)

    status = b'{"status":{"message":"seen"}}'
    try:
        assert b'"seen"' in await client.patch_status(pod, status, impersonate=NODE)
        await forbidden(client.patch_status(pod, status, impersonate=OTHER))
        await forbidden(client.patch_status(pod, status))
        await forbidden(client.delete(pod, impersonate=OTHER))
        await forbidden(client.delete(pod))
        assert b'"x"' in await labelled(NODE, "vknode.dev/test", NODE)
        await forbidden(labelled(OTHER, "vknode.dev/test", NODE))
        await forbidden(labelled(NODE, "vknode.dev/test", OTHER))
        await forbidden(labelled(NODE, "node-restriction.kubernetes.io/trusted", NODE))
        await forbidden(client.delete(f"/api/v1/nodes/{OTHER}", impersonate=NODE))
    finally:
        await connection.close()


def test_it_acts_as_its_own_nodes_and_as_nobody_else(
    sim_kube: Kube, agent: Callable[..., str]
) -> None:
    sim_kube.apply(simple_pod("it", nodeName=NODE))
    sim_kube.wait_phase("it", "Running")
    look = ("get", "pods")
    for other in (
        ("--as=system:node:somebody-elses", "--as-group=system:nodes"),
        ("--as=kubernetes-admin",),
        ("--as=system:kube-scheduler",),
        (f"--as=system:node:{NODE}", "--as-group=system:masters"),
        ("--as=system:serviceaccount:kube-system:default",),
    ):
        assert agent(*look, *other) == "forbidden"
    for what in (
        ("run", "x", "--image=busybox"),
        ("exec", "it", "--", "true"),
        ("create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=x"),
        ("get", "clusterroles"),
    ):
        assert agent(*what) == "forbidden", what
