"""Cluster trust bundles of a real API server reach Pods, and their changes too."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.agent.world import World
from tests.support.certificates import root_certificate
from vknode.translate.trust import certificates

pytestmark = pytest.mark.cluster

PATH = "/apis/certificates.k8s.io/v1/clustertrustbundles"


@asynccontextmanager
async def bundle(world: World, name: str, text: str, signer: str = "") -> AsyncIterator[str]:
    """Cluster-wide, so its name is unique; removed afterwards."""
    unique = f"{name}-{uuid.uuid4().hex[:6]}"
    if signer:
        unique = f"{signer.replace('/', ':')}:{unique}"
    spec = {"trustBundle": text, "signerName": signer} if signer else {"trustBundle": text}
    body = {"metadata": {"name": unique, "labels": {"env": world.namespace}}, "spec": spec}
    await world.client.create(PATH, msgspec.json.encode(body))
    try:
        yield unique
    finally:
        await world.client.delete(f"{PATH}/{unique}")


async def replaced(world: World, name: str, text: str) -> None:
    patch = msgspec.json.encode({"spec": {"trustBundle": text}})
    await world.client.patch(f"{PATH}/{name}", patch)


async def shows(world: World, uid: str, text: str) -> None:
    wanted = certificates(text)

    def content() -> str:
        (volume,) = world.pool.specs[uid].volumes
        return volume.files.files[0].content.decode()

    await world.until(lambda: uid in world.pool.specs and certificates(content()) == wanted)


async def test_bundles_by_name_and_by_signer_are_followed(world: World) -> None:
    signer = f"example.com/s{world.namespace[-6:]}"
    first, second, third = (root_certificate(name) for name in ("one", "two", "three"))
    async with bundle(world, "named", first) as name, world.agent() as agent:
        named = await world.create("named", **mounted({"name": name}))
        await world.phase("Running", "named")
        await shows(world, named, first)
        selector = {"matchLabels": {"env": world.namespace}}
        signed = await world.create(
            "signed", **mounted({"signerName": signer, "labelSelector": selector})
        )
        event = await world.event("FailedMount")
        assert "matched zero ClusterTrustBundles" in event["message"]
        assert signed not in world.pool.specs
        async with bundle(world, "a", second, signer):
            await world.phase("Running", "signed")
            await shows(world, signed, second)
            async with bundle(world, "b", third, signer):
                await shows(world, signed, second + third)
            await shows(world, signed, second)
        await replaced(world, name, third)
        await shows(world, named, third)
        assert agent.ready


def mounted(source: dict[str, object]) -> dict[str, object]:
    source = {"clusterTrustBundle": {**source, "path": "ca.pem"}}
    return {
        "automountServiceAccountToken": False,
        "volumes": [{"name": "t", "projected": {"sources": [source]}}],
        "container": {"volumeMounts": [{"name": "t", "mountPath": "/t"}]},
    }
