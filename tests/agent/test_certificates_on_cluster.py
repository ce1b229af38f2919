"""Pod certificates on a real API server: asked for as the node, answered by a signer (this test),
shown with their keys, renewed, refused."""

from __future__ import annotations

import asyncio
import base64
import datetime
import time
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.agent.world import PATIENCE, World
from vknode.agent import pod_certificates

pytestmark = pytest.mark.cluster

API = "/apis/certificates.k8s.io/v1"


class Signer:
    """Looks at the requests of its own name and answers them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = f"example.com/s{world.namespace[-6:]}"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.seen: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        """A request that has not been seen yet."""
        path = f"{API}/namespaces/{self.world.namespace}/podcertificaterequests"
        async with asyncio.timeout(PATIENCE):
            while True:
                found = msgspec.json.decode(await self.world.client.get(path))["items"]
                names = {one["metadata"]["name"] for one in self.seen}
                for one in found:
                    if one["metadata"]["name"] not in names:
                        self.seen.append(one)
                        return dict(one)
                await asyncio.sleep(0.05)

    async def answer(self, request: dict[str, Any], status: dict[str, Any]) -> None:
        meta = request["metadata"]
        path = f"{API}/namespaces/{meta['namespace']}/podcertificaterequests/{meta['name']}"
        body = msgspec.json.encode({"status": status})
        await self.world.client.patch_status(
            path, body, content_type="application/merge-patch+json"
        )

    async def issue(self, request: dict[str, Any]) -> str:
        spec = request["spec"]
        csr = x509.load_der_x509_csr(base64.b64decode(spec["stubPKCS10Request"]))
        assert csr.is_signature_valid
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spec["podName"])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(hours=1))
            .sign(self.key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        condition = {
            "type": "Issued",
            "status": "True",
            "reason": "Issued",
            "message": "here it is",
            "lastTransitionTime": stamp(now),
        }
        await self.answer(
            request,
            {
                "conditions": [condition],
                "certificateChain": pem,
                "notBefore": stamp(now),
                "notAfter": stamp(now + datetime.timedelta(hours=1)),
                "beginRefreshAt": stamp(now + datetime.timedelta(minutes=30)),
            },
        )
        return pem


def stamp(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def mounted(signer: Signer, **source: Any) -> dict[str, Any]:
    projection = {"signerName": signer.name, "keyType": "ED25519", **source}
    return {
        "volumes": [{"name": "t", "projected": {"sources": [{"podCertificate": projection}]}}],
        "automountServiceAccountToken": False,
        "container": {"volumeMounts": [{"name": "t", "mountPath": "/t"}]},
    }


def files(world: World, uid: str) -> dict[str, str]:
    (volume,) = world.pool.specs[uid].volumes
    assert volume.files.sensitive
    return {file.path: file.content.decode() for file in volume.files.files}


def belong_together(key: str, chain: str) -> bool:
    private = serialization.load_pem_private_key(key.encode(), None)
    public = x509.load_pem_x509_certificate(chain.encode()).public_key()
    shape = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.public_key().public_bytes(*shape) == public.public_bytes(*shape)


async def test_a_certificate_is_asked_for_shown_and_renewed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_certificates, "SPREAD", 0.0)
    signer = Signer(world)
    ahead = 0.0
    async with world.agent() as agent:
        agent.refresher.certificates._clock = lambda: time.time() + ahead
        paths = {"keyPath": "key.pem", "certificateChainPath": "chain.pem"}
        both = {"credentialBundlePath": "both.pem", "maxExpirationSeconds": 3600}
        uid = await world.create(**mounted(signer, **paths, **both))
        request = await signer.next()
        assert request["spec"]["podUID"] == uid
        assert request["spec"]["nodeName"] == world.node
        assert request["spec"]["maxExpirationSeconds"] == 3600
        assert request["metadata"]["ownerReferences"][0]["uid"] == uid
        event = await world.event("FailedMount")
        assert "credential bundle is not issued yet" in event["message"]
        first = await signer.issue(request)
        await world.phase("Running")
        shown = files(world, uid)
        assert shown["chain.pem"] == first
        assert shown["both.pem"] == shown["key.pem"] + first
        assert belong_together(shown["key.pem"], first)
        # Half an hour later, whatever makes the agent look at the Pod again.
        ahead = 1900.0
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"a":"b"}}}')
        second = await signer.issue(await signer.next())
        await world.until(lambda: files(world, uid)["chain.pem"] == second)
        assert belong_together(files(world, uid)["key.pem"], second)
        assert len(signer.seen) == 2


async def test_a_quick_signer_holds_nobody_up(world: World) -> None:
    signer = Signer(world)
    async with world.agent():
        uid = await world.create(**mounted(signer, credentialBundlePath="b.pem"))
        await signer.issue(await signer.next())
        await world.phase("Running")
        assert "PRIVATE KEY" in files(world, uid)["b.pem"]


async def test_a_refusal_is_for_good_and_told(world: World) -> None:
    signer = Signer(world)
    async with world.agent():
        await world.create(**mounted(signer, credentialBundlePath="b.pem"))
        request = await signer.next()
        condition = {
            "type": "Denied",
            "status": "True",
            "reason": "NotYou",
            "message": "ask somebody else",
            "lastTransitionTime": stamp(datetime.datetime.now(datetime.UTC)),
        }
        await signer.answer(request, {"conditions": [condition]})
        event = await world.event("Denied")
        assert 'was denied, reason="NotYou", message="ask somebody else"' in event["message"]
        async with asyncio.timeout(PATIENCE):
            while not any(
                "was permanently denied" in event["message"]
                for event in await world.events("FailedMount")
            ):
                await asyncio.sleep(0.05)
        await world.delete()
        await world.when(lambda pod: pod is None)


async def test_a_request_that_somebody_deleted_is_made_again(world: World) -> None:
    signer = Signer(world)
    async with world.agent():
        await world.create(**mounted(signer, credentialBundlePath="b.pem"))
        request = await signer.next()
        await world.client.delete(
            f"{API}/namespaces/{world.namespace}/podcertificaterequests/"
            f"{request['metadata']['name']}"
        )
        await signer.issue(await signer.next())
        await world.phase("Running")


@pytest.mark.parametrize("key_type", ["RSA3072", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"])
def test_every_type_of_key_proves_itself(key_type: str) -> None:
    text, request = pod_certificates.make_key(key_type)
    assert text.startswith("-----BEGIN PRIVATE KEY-----")
    assert x509.load_der_x509_csr(request).is_signature_valid
