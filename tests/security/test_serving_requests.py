"""The kubelet API's certificate from a real cluster: asked for as a node, approved by a person,
verified by the API server, renewed under open connections, kept over a restart."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from cryptography import x509
from prometheus_client import generate_latest

from tests.conftest import ControlPlaneHandle
from tests.kubeletapi.conftest import client_context, make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from tests.support.fixtures import Running, have, own_namespace, started
from tests.support.kube import simple_pod
from tests.support.until import until
from vknode.agent.metrics import AgentMetrics
from vknode.agent.serving_certificate import SIGNER, ServingPair
from vknode.agent.serving_requests import FILE_NAME, ServingRequests
from vknode.compose.process import publish_kubelet_api
from vknode.devcluster.programs.catalog import CONTROL_PLANE
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kubeletapi import KubeletApi

pytestmark = pytest.mark.cluster


def requests_of(out: str, node: str = "") -> list[dict[str, Any]]:
    """Of the signer; of one node, if it is named."""
    found = [one for one in json.loads(out)["items"] if one["spec"]["signerName"] == SIGNER]
    return [one for one in found if one["spec"]["username"].endswith(node)]


# -- the whole agent -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bootstrapped() -> Iterator[Running]:
    """An agent without a certificate of its own."""
    have(CONTROL_PLANE)
    kubelet = {
        "servingCert": None,
        "servingKey": None,
        "serverTLSBootstrap": True,
        "certDirectory": "serving",
    }
    with started(
        runtime="sim", zones=1, cells_per_zone=2, agent_config={"kubelet": kubelet}
    ) as running:
        yield running


def test_an_operator_approves_and_kubectl_works_on_every_node(bootstrapped: Running) -> None:
    cluster, thread = bootstrapped.cluster, bootstrapped.thread
    with own_namespace(bootstrapped.kube, "serving") as kube:
        for node in cluster.node_names:
            kube.apply(simple_pod(node, ["sh", "-c", "echo here; sleep 3600"], nodeName=node))
            kube.wait_phase(node, "Running")

        def pending() -> list[dict[str, Any]]:
            return requests_of(kube.out("get", "csr", "-o", "json"))

        (request,) = until(pending, "a request")
        name = request["metadata"]["name"]
        first = min(cluster.node_names)
        # The first of those that were registered when it asked.
        ours = {f"system:node:{node}" for node in cluster.node_names}
        assert request["spec"]["username"] in ours
        assert "system:nodes" in request["spec"]["groups"]
        assert sorted(request["spec"]["usages"]) == ["digital signature", "server auth"]
        # It is told once the API server has answered, which others may see before.
        until(
            lambda: f"kubectl certificate approve {name}" in bootstrapped.agent_log(),
            "it is told what to do",
        )

        # Until then nobody gets through, and nothing else does either.
        done = kube.run("logs", first, check=False)
        assert done.returncode != 0 and not done.stdout

        kube.out("certificate", "approve", name)
        until(
            lambda: kube.run("logs", first, check=False).stdout == "here\n",
            "kubectl logs",
            show=lambda: kube.run("logs", first, check=False).stderr,
        )
        # The API server verifies (--kubelet-certificate-authority): one certificate, all nodes.
        for node in cluster.node_names:
            assert kube.out("exec", node, "--", "echo", node) == f"{node}\n"

        # A new agent goes on with it.
        assert cluster.agent_files is not None
        kept = cluster.agent_files.config.parent / "serving" / FILE_NAME
        assert kept.stat().st_mode & 0o777 == 0o600
        thread.run(cluster.kill_agent())
        thread.run(cluster.start_agent())
        until(
            lambda: kube.run("logs", first, check=False).stdout == "here\n",
            "kubectl logs after a restart",
            timeout=60,
        )
        assert len(pending()) == 1
        log = bootstrapped.agent_log()
        assert "serving_certificate_found" in log
        assert "PRIVATE KEY" not in log


# -- one server, requests that are answered by the test --------------------------------------


@dataclass
class Asking:
    """A kubelet API that gets its certificates from requests."""

    plane: ControlPlaneHandle
    api: KubeletApi
    port: int
    node: str
    requests: ServingRequests
    used: list[ServingPair] = field(default_factory=list)

    async def kubectl(self, *arguments: str) -> str:
        done = await asyncio.to_thread(self.plane.kubectl.run, *arguments)
        return done.stdout.decode()

    async def pending(self, number: int) -> str:
        """The name of this node's request that waits for an answer, once there are so many
        with those that have one."""
        async with asyncio.timeout(60):
            while True:
                found = requests_of(await self.kubectl("get", "csr", "-o", "json"), self.node)
                waiting = [one for one in found if not one["status"].get("conditions")]
                if len(found) >= number and waiting:
                    (one,) = waiting
                    return str(one["metadata"]["name"])
                await asyncio.sleep(0.1)

    async def used_so_far(self, number: int) -> ServingPair:
        async with asyncio.timeout(60):
            while len(self.used) < number:
                await asyncio.sleep(0.05)
        return self.used[number - 1]

    async def served(self) -> x509.Certificate:
        """The certificate that a new connection gets."""
        address = ("127.0.0.1", self.port)
        pem = await asyncio.to_thread(ssl.get_server_certificate, address)
        return x509.load_pem_x509_certificate(pem.encode())


@pytest.fixture
async def asking(control_plane: ControlPlaneHandle, tmp_path: Path) -> AsyncIterator[Asking]:
    """Renews at once, so that after each answer the next request comes."""
    authority = control_plane.control_plane.authority
    backend = LocalBackend(tmp_path / "rootfs")
    backend.root.mkdir()
    backend.add("web")
    settings = make_settings(authority, serving_cert=None, serving_key=None)
    api = KubeletApi(backend, LocalNodes(), settings, Rules())
    port = await api.start()
    connection = await connect(control_plane.kubeconfig)
    used: list[ServingPair] = []

    def use(pair: ServingPair) -> None:
        used.append(pair)
        api.use_certificate(pair.pem)

    node = f"n-{tmp_path.parent.name[-12:]}-{tmp_path.name[-12:]}".lower().replace("_", "-")
    requests = ServingRequests(
        KubeClient(connection),
        lambda: ["x" * 60, node],
        "127.0.0.1",
        use,
        share=lambda: 0.0,
        backoff=Backoff(base=0.1, maximum=0.2),
    )
    task = asyncio.create_task(requests.run())
    try:
        yield Asking(control_plane, api, port, node, requests, used)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()
        await api.stop()


async def test_before_the_answer_no_handshake_succeeds(asking: Asking) -> None:
    await asking.pending(1)
    metrics = AgentMetrics()
    publish_kubelet_api(metrics, asking.api)
    # Long expired: the alert of certificates that end tells of it.
    line = b'vknode_certificate_expiry_timestamp_seconds{certificate="kubelet_serving",pool=""} 0.0'
    assert line in generate_latest(metrics.registry)
    with pytest.raises(OSError):
        await asking.served()


async def test_a_renewed_certificate_cuts_no_stream(asking: Asking) -> None:
    await asking.kubectl("certificate", "approve", await asking.pending(1))
    await asking.used_so_far(1)
    first = await asking.served()
    authority = asking.plane.control_plane.authority
    first.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem))

    context = client_context(authority, authority.issue("test-stream", API_SERVER))
    url = f"https://127.0.0.1:{asking.port}/exec/default/web/main?command=cat&input=1&output=1"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.ws_connect(url, protocols=("v5.channel.k8s.io",)) as stream,
    ):

        async def echo(word: bytes) -> None:
            await stream.send_bytes(b"\x00" + word)
            async with asyncio.timeout(60):
                while await stream.receive_bytes() != b"\x01" + word:
                    pass

        await echo(b"before")
        await asking.kubectl("certificate", "approve", await asking.pending(2))
        await asking.used_so_far(2)
        second = await asking.served()
        assert second.serial_number != first.serial_number
        assert second.public_key() != first.public_key()
        await echo(b"after")


async def test_a_request_that_is_denied_is_told_and_made_again(asking: Asking) -> None:
    with structlog.testing.capture_logs() as lines:
        name = await asking.pending(1)
        await asking.kubectl("certificate", "deny", name)
        await asking.kubectl("certificate", "approve", await asking.pending(2))
        pair = await asking.used_so_far(1)
    (warning,) = [line for line in lines if line["event"] == "serving_certificate_not_issued"]
    assert f"request {name} was denied" in warning["reason"]
    assert asking.requests.held == pair


async def test_a_request_that_is_deleted_is_made_again(asking: Asking) -> None:
    await asking.kubectl("delete", "csr", await asking.pending(1))
    await asking.kubectl("certificate", "approve", await asking.pending(1))
    pair = await asking.used_so_far(1)
    ends = (await asking.served()).not_valid_after_utc
    assert ends.timestamp() == pair.not_after
