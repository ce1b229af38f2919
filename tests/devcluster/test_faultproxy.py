"""The fault proxy before a real API server: transparent, until told otherwise."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import ControlPlaneHandle
from tests.support.until import until
from vknode.devcluster.controlplane import client_context
from vknode.devcluster.faultadmin import FaultAdmin
from vknode.devcluster.faultproxy import FaultProxy

pytestmark = pytest.mark.cluster


@pytest.fixture
async def proxy(control_plane: ControlPlaneHandle) -> AsyncIterator[FaultProxy]:
    authority = control_plane.control_plane.authority
    proxy = FaultProxy(
        upstream=control_plane.url,
        upstream_ca=control_plane.ca,
        serving=authority.issue("test-proxy", "test-proxy", ips=["127.0.0.1"]),
    )
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture(scope="module")
def token(control_plane: ControlPlaneHandle) -> Iterator[str]:
    """Of a ServiceAccount that may do anything."""
    kubectl = control_plane.kubectl
    kubectl(
        "create", "clusterrolebinding", "proxy-test", "--clusterrole=cluster-admin",
        "--serviceaccount=default:default",
    )  # fmt: skip
    allowed = ("auth", "can-i", "*", "*", "--as=system:serviceaccount:default:default")
    # The authorizer learns of the binding by a watch.
    until(lambda: kubectl.run(*allowed, check=False).returncode == 0, "the rights are there")
    yield kubectl("create", "token", "default").strip()
    kubectl("delete", "clusterrolebinding", "proxy-test")


@pytest.fixture
async def session(
    control_plane: ControlPlaneHandle, token: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """Authenticates by token: client certificates end at the proxy's TLS."""
    context: ssl.SSLContext = client_context(control_plane.ca)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(total=60),
    ) as session:
        yield session


def config_map(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"text": "ä" * 1000}}


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    while line := await answer.content.readline():
        yield json.loads(line)


async def test_passes_requests_and_watches_through(
    proxy: FaultProxy, session: aiohttp.ClientSession, namespace: str
) -> None:
    maps = f"{proxy.url}/api/v1/namespaces/{namespace}/configmaps"
    query = {"watch": "true", "fieldSelector": "metadata.name=one"}
    async with session.get(maps, params=query) as watch:
        assert proxy.open_watches == 1
        async with session.post(maps, json=config_map("one")) as answer:
            assert answer.status == 201
            made = await answer.json()
        seen = await anext(events(watch))
        assert seen == {
            "type": "ADDED",
            "object": {**made, "kind": "ConfigMap", "apiVersion": "v1"},
        }
    async with session.patch(
        f"{maps}/one",
        data=b'{"data":{"more":"1"}}',
        headers={"Content-Type": "application/merge-patch+json"},
    ) as answer:
        assert (await answer.json())["data"]["more"] == "1"
    async with session.get(f"{maps}/absent") as answer:
        assert answer.status == 404
        assert (await answer.json())["reason"] == "NotFound"


async def test_an_abandoned_watch_is_closed_upstream(
    proxy: FaultProxy, session: aiohttp.ClientSession
) -> None:
    answer = await session.get(f"{proxy.url}/api/v1/nodes?watch=true")
    assert proxy.open_watches == 1
    answer.close()
    async with asyncio.timeout(60):
        while proxy.open_watches:
            await asyncio.sleep(0.01)


async def test_statuses_hit_what_they_match_and_as_often_as_asked(
    proxy: FaultProxy, session: aiohttp.ClientSession, namespace: str
) -> None:
    proxy.fail(429, method="GET", path="/nodes$", count=2, retry_after=7)
    nodes = f"{proxy.url}/api/v1/nodes"
    for _ in range(2):
        async with session.get(nodes) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "7"
            assert (await answer.json())["details"]["retryAfterSeconds"] == 7
    async with session.get(nodes) as answer:
        assert answer.status == 200

    rule = proxy.fail(500, method="POST", lost_answer=True)
    maps = f"{proxy.url}/api/v1/namespaces/{namespace}/configmaps"
    async with session.post(maps, json=config_map("lost")) as answer:
        assert answer.status == 500
    proxy.clear(rule)
    async with session.post(maps, json=config_map("lost")) as answer:
        assert answer.status == 409, "the API server had done what it could not answer"


async def test_watches_expire_by_status_and_by_event(
    proxy: FaultProxy, session: aiohttp.ClientSession
) -> None:
    watching = f"{proxy.url}/api/v1/namespaces?watch=true"
    proxy.fail(410, watch=True, count=1)
    async with session.get(watching) as answer:
        assert answer.status == 410
    async with session.get(watching) as answer:
        stream = events(answer)
        assert (await anext(stream))["type"] == "ADDED"
        assert await proxy.expire_watches() == 1
        last = [event async for event in stream][-1]
    assert last["type"] == "ERROR"
    assert last["object"]["code"] == 410 and last["object"]["reason"] == "Expired"


async def test_watches_are_dropped_cleanly_or_by_reset(
    proxy: FaultProxy, session: aiohttp.ClientSession
) -> None:
    watching = f"{proxy.url}/api/v1/namespaces?watch=true"
    async with session.get(watching) as answer:
        assert await proxy.drop_watches("clean") == 1
        await answer.read()  # ends as any response does
    async with session.get(watching) as answer:
        assert await proxy.drop_watches("reset") == 1
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_a_cut_breaks_everything_until_it_is_mended(
    proxy: FaultProxy, session: aiohttp.ClientSession
) -> None:
    nodes = f"{proxy.url}/api/v1/nodes"
    async with session.get(f"{nodes}?watch=true") as watch:
        await proxy.cut()
        with pytest.raises(aiohttp.ClientError):
            await watch.read()
    with pytest.raises(aiohttp.ClientError):
        await session.get(nodes)
    await proxy.mend()
    async with session.get(nodes) as answer:
        assert answer.status == 200

    begun = time.monotonic()
    await proxy.cut(seconds=0.3, how="hang")
    async with session.get(nodes) as answer:
        assert answer.status == 200
    assert time.monotonic() - begun >= 0.25


async def test_delays(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    proxy.delay(0.2, path="/nodes")
    begun = time.monotonic()
    async with session.get(f"{proxy.url}/api/v1/nodes") as answer:
        assert answer.status == 200
    assert time.monotonic() - begun >= 0.2


def test_refuses_faults_that_could_not_hit(control_plane: ControlPlaneHandle) -> None:
    proxy = FaultProxy(
        upstream=control_plane.url,
        upstream_ca=control_plane.ca,
        serving=control_plane.admin,
    )
    for wrong in ({"status": 200}, {"status": 500, "path": "("}, {"status": 500, "probability": 0}):
        with pytest.raises(ValueError, match=r"status is|path is|probability is"):
            proxy.fail(**wrong)


async def test_faults_over_http(proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
    admin = FaultAdmin(proxy)
    await admin.start()
    nodes = f"{proxy.url}/api/v1/nodes"
    try:
        async with aiohttp.ClientSession(admin.url) as http:
            rule = {"status": 503, "path": "/nodes", "count": 1}
            async with http.post("/faults", json=rule) as answer:
                assert answer.status == 201
            async with session.get(nodes) as answer:
                assert answer.status == 503
            async with http.get("/faults") as answer:
                assert (await answer.json())["faults"][0]["hits"] == 1
            for wrong in (
                {"status": 200},
                {"status": 500, "pth": "/nodes"},
                {"delay": "x", "y": 1},
            ):
                async with http.post("/faults", json=wrong) as answer:
                    assert answer.status == 400 and (await answer.json())["error"]
            async with session.get(f"{nodes}?watch=true") as watch:
                async with http.post("/watches/drop", json={"how": "clean"}) as answer:
                    assert await answer.json() == {"watches": 1}
                await watch.read()
            async with http.delete("/faults") as answer:
                assert answer.status == 200 and proxy.rules == []
    finally:
        await admin.stop()
