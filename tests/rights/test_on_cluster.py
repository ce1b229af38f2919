"""The agent asks the API server what docs/agent-rights.md lists, all of it and nothing else: by
the audit log of a cluster on which everything happens that an agent has to ask for."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support import rights
from tests.support.certificates import root_certificate
from tests.support.fixtures import Running, have, own_namespace, started
from tests.support.kube import Kube, Object, simple_pod
from tests.support.until import until
from vknode.devcluster.programs.catalog import CONTROL_PLANE

pytestmark = pytest.mark.cluster

STAYS, TAKEN, GOES = "az1-a", "az1-b", "az1-c"


@pytest.fixture(scope="module")
def alone() -> Iterator[Running]:
    """A cluster of its own, for its agent is killed and its cells go."""
    have(CONTROL_PLANE)
    with started(
        runtime="sim",
        zones=1,
        cells_per_zone=3,
        agent_config={
            "kubelet": {"servingCert": None, "servingKey": None, "serverTLSBootstrap": True},
            "pool": {"cellGoneAfterSeconds": 1},
            "lease": {"durationSeconds": 40, "renewSeconds": 1},
        },
    ) as running:
        yield running


def pod(name: str, *sources: Object, **spec: object) -> Object:
    """On the node that stays, with a projected volume of these sources."""
    volumes = [{"name": "v", "projected": {"sources": list(sources)}}] if sources else []
    mounts = [{"name": "v", "mountPath": "/v"}] if sources else []
    return simple_pod(
        name, nodeName=STAYS, volumes=volumes, container={"volumeMounts": mounts, **spec}
    )


def test_the_agent_asks_for_what_is_listed_and_for_nothing_else(alone: Running) -> None:
    cluster, thread = alone.cluster, alone.thread
    log = cluster.state.logs / "audit.log"
    with own_namespace(alone.kube, "rights") as kube:
        everything_a_pod_may_name(kube)
        # What it uses is watched while it runs; the watches begin when it does.
        for resource in ("secrets", "configmaps"):
            until(
                lambda resource=resource: any(  # type: ignore[misc]  # mypy cannot infer lambda defaults
                    one.user and one.right == ("watch", resource) for one in rights.requests(log)
                ),
                f"a watch of {resource}",
            )
        the_kubelet_api(kube)
        # What others do to its Nodes, and with a Pod, while it looks.
        kube.out("label", "node", STAYS, "topology.kubernetes.io/zone=lie", "--overwrite")
        kube.out("delete", "pod", "all", "--wait=true")
        # And while it is away: a Pod is gone, a Node's name is somebody else's.
        kube.apply(pod("orphan"))
        kube.wait_phase("orphan", "Running")
        thread.run(cluster.kill_agent())
        kube.out("delete", "pod", "orphan", "--grace-period=0", "--force")
        kube.out("delete", "node", TAKEN)
        kube.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": TAKEN}})
        thread.run(cluster.start_agent())
        # A cell goes.
        thread.run(cluster.kill_pool("az1"))
        zone = cluster.zones["az1"]
        zone.options = replace(zone.options, cells=2)
        zone.pool = zone._child("pool", zone.pool_command())
        thread.run(cluster.start_pool("az1"))
        kube.gone("node", GOES, timeout=90)
        until(
            lambda: not rights.never_made(rights.requests(log)),
            "every request of the table",
            timeout=120,
            show=lambda: "never made: " + "; ".join(rights.never_made(rights.requests(log))),
        )
        kube.out("delete", "node", TAKEN)
    assert rights.unlisted(rights.requests(log), (STAYS, TAKEN, GOES)) == []


def the_kubelet_api(kube: Kube) -> None:
    """Its certificate is approved, and two kinds of users come."""
    names = until(lambda: kube.out("get", "csr", "-o", "name").split(), "a request")
    kube.out("certificate", "approve", *(name.rpartition("/")[2] for name in names))
    until(
        lambda: kube.run("logs", "all", check=False).returncode == 0,
        "kubectl logs",
        show=lambda: kube.run("logs", "all", check=False).stderr,
    )
    status = kube.json("get", "node", STAYS)["status"]
    address = next(one["address"] for one in status["addresses"] if one["type"] == "InternalIP")
    port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    token = kube.out("create", "token", "default").strip()
    request = urllib.request.Request(
        f"https://{address}:{port}/healthz", headers={"Authorization": f"Bearer {token}"}
    )
    # It is known, and may not.
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=60)
    assert caught.value.code == 403
    caught.value.close()


def everything_a_pod_may_name(kube: Kube) -> None:
    signer = f"example.com/{kube.namespace}"
    bundle = f"{signer.replace('/', ':')}:ca"
    kube.out("create", "configmap", "c", "--from-literal=k=v")
    kube.out("create", "secret", "generic", "s", "--from-literal=k=v")
    kube.apply(
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "ClusterTrustBundle",
            "metadata": {"name": bundle},
            "spec": {"signerName": signer, "trustBundle": root_certificate("rights")},
        },
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": kube.namespace},
            "handler": "anything",
        },
        pod(
            "all",
            {"configMap": {"name": "c"}},
            {"secret": {"name": "s"}},
            {"clusterTrustBundle": {"name": bundle, "path": "ca.pem"}},
        ),
        # Nobody answers its request, and it waits.
        pod(
            "certificate",
            {
                "podCertificate": {
                    "signerName": signer,
                    "keyType": "ED25519",
                    "credentialBundlePath": "both.pem",
                }
            },
        ),
        # The same event again and again.
        simple_pod("crashing", ("sh", "-c", "exit 1"), nodeName=STAYS),
        simple_pod("classy", nodeName=STAYS, runtimeClassName=kube.namespace),
    )
    kube.wait_phase("all", "Running")
