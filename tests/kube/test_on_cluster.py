"""The reflector and the client's errors against a real API server, and through the fault proxy."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import yaml

from tests.conftest import ControlPlaneHandle
from tests.support.until import until as look_until
from vknode.devcluster.faultproxy import FaultProxy
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import Forbidden, Unauthorized, Unreachable
from vknode.kube.models import ObjectKey, PartialObject, decode_list, decode_partial
from vknode.kube.reflector import Reflector, ReflectorOptions

pytestmark = pytest.mark.cluster

decode = msgspec.json.Decoder(PartialObject).decode


class World:
    """UID -> (name, resourceVersion), as told; a delete of what is unknown is noted."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, str]] = {}
        self.syncs = 0

    def upsert(self, obj: PartialObject) -> None:
        meta = obj.metadata
        live = {name: uid for uid, (name, _) in self.objects.items()}
        assert live.get(meta.name, meta.uid) == meta.uid, "two UIDs of one name at once"
        self.objects[meta.uid] = (meta.name, meta.resource_version)

    def deleted(self, key: ObjectKey, last: PartialObject | None) -> None:
        assert self.objects.pop(key.uid)[0] == key.name

    def synced(self) -> None:
        self.syncs += 1


@pytest.fixture
async def admin(control_plane: ControlPlaneHandle) -> AsyncIterator[KubeClient]:
    connection = await connect(control_plane.kubeconfig)
    yield KubeClient(connection)
    await connection.close()


@pytest.fixture
async def proxy(control_plane: ControlPlaneHandle) -> AsyncIterator[FaultProxy]:
    plane = control_plane.control_plane
    proxy = FaultProxy(
        upstream=plane.url,
        upstream_ca=plane.authority.cert,
        serving=plane.authority.issue("kube-proxy-test", "kube-proxy-test", ips=["127.0.0.1"]),
    )
    await proxy.start()
    yield proxy
    await proxy.stop()


def kubeconfig(folder: Path, server: str, ca: Path, **user: str) -> Path:
    file = folder / "test.kubeconfig"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": server, "certificate-authority": str(ca)}}
        ],
        "users": [{"name": "u", "user": user}],
    }
    file.write_text(yaml.safe_dump(document))
    return file


def editor_token(control_plane: ControlPlaneHandle, namespace: str) -> str:
    """Client certificates end at the proxy's TLS, so a token it is."""
    kubectl = control_plane.kubectl
    kubectl("-n", namespace, "create", "serviceaccount", "editor")
    kubectl(
        *("-n", namespace, "create", "rolebinding", "editor"),
        *("--clusterrole=edit", f"--serviceaccount={namespace}:editor"),
    )
    account = f"--as=system:serviceaccount:{namespace}:editor"

    def allowed() -> bool:
        asked = kubectl.run(
            "-n", namespace, "auth", "can-i", "list", "configmaps", account, check=False
        )
        return asked.returncode == 0

    look_until(allowed, "the authorizer knows of the binding")
    return kubectl("-n", namespace, "create", "token", "editor").strip()


@asynccontextmanager
async def reflecting(
    client: KubeClient,
    path: str,
    world: World,
    page_size: int = 500,
    read_timeout: float = 150.0,
) -> AsyncIterator[Reflector[PartialObject]]:
    reflector = Reflector(
        client,
        path,
        decode,
        world,
        options=ReflectorOptions(
            page_size=page_size,
            read_timeout=read_timeout,
            make_backoff=lambda: Backoff(base=0.05, maximum=0.5),
        ),
    )
    task = asyncio.create_task(reflector.run())
    try:
        await asyncio.wait_for(reflector.wait_synced(), 60)
        yield reflector
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def make(client: KubeClient, path: str, name: str) -> None:
    await client.create(path, json.dumps({"metadata": {"name": name}}).encode())


async def truth(client: KubeClient, path: str) -> dict[str, tuple[str, str]]:
    page = decode_list(await client.get(path))
    metas = [decode_partial(raw).metadata for raw in page.items or ()]
    return {m.uid: (m.name, m.resource_version) for m in metas}


async def until(what: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.05)


async def test_pages_of_a_real_list_then_its_events(admin: KubeClient, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for number in range(120):
        await make(admin, path, f"a{number}")
    world = World()
    before = admin.stats.requests.get("GET", 0)
    async with reflecting(admin, path, world, page_size=50) as reflector:
        assert world.objects == await truth(admin, path)
        assert admin.stats.requests["GET"] - before >= 3
        await make(admin, path, "later")
        await admin.delete(f"{path}/a0")
        await admin.patch(f"{path}/a1", b'{"data":{"k":"v"}}')

        async def same() -> bool:
            return world.objects == await truth(admin, path)

        await until(same)
        assert reflector.stats.lists == 1
    assert world.syncs == 1


async def test_a_revision_of_a_lost_future_leads_to_a_relist(
    admin: KubeClient,
    proxy: FaultProxy,
    control_plane: ControlPlaneHandle,
    namespace: str,
    tmp_path: Path,
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    token = await asyncio.to_thread(editor_token, control_plane, namespace)
    connection = await connect(kubeconfig(tmp_path, proxy.url, control_plane.ca, token=token))
    world = World()
    try:
        async with reflecting(KubeClient(connection), path, world, read_timeout=0.5) as reflector:

            async def watching() -> bool:
                return proxy.open_watches == 1

            await until(watching)
            # as after etcd was restored from a backup: the real server takes it and says nothing
            reflector._resource_version = "999999999"
            await proxy.drop_watches()

            async def relisted() -> bool:
                return reflector.stats.relists >= 1

            await until(relisted)
            await make(admin, path, "after")

            async def same() -> bool:
                return world.objects == await truth(admin, path)

            await until(same)
    finally:
        await connection.close()


async def test_after_any_faults_the_view_is_the_truth(
    admin: KubeClient,
    proxy: FaultProxy,
    control_plane: ControlPlaneHandle,
    namespace: str,
    tmp_path: Path,
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    token = await asyncio.to_thread(editor_token, control_plane, namespace)
    connection = await connect(kubeconfig(tmp_path, proxy.url, control_plane.ca, token=token))
    world = World()
    chance = random.Random(7)
    names = [f"m{i}" for i in range(20)]

    async def churn() -> None:
        """Creates, deletes and recreates under the same names, past the proxy."""
        present: set[str] = set()
        while True:
            name = chance.choice(names)
            if name in present:
                await admin.delete(f"{path}/{name}")
                present.discard(name)
            else:
                await make(admin, path, name)
                present.add(name)
            await asyncio.sleep(0.003)

    writer = asyncio.create_task(churn())
    try:
        async with reflecting(KubeClient(connection), path, world, page_size=7) as reflector:
            for _ in range(3):
                await proxy.drop_watches("reset")
                await asyncio.sleep(0.2)
                await proxy.drop_watches("clean")
                await asyncio.sleep(0.2)
                await proxy.expire_watches()
                await asyncio.sleep(0.2)
                for code in (410, 500, 429):
                    retry_after = 1 if code == 429 else None
                    proxy.fail(code, watch=True, count=1, retry_after=retry_after)
                    await proxy.drop_watches("reset")
                    await asyncio.sleep(0.2)
                proxy.fail(500, method="GET", watch=False, count=1)
                proxy.fail(410, method="GET", watch=False, count=1)
                await proxy.expire_watches()
                await asyncio.sleep(0.3)
            await proxy.cut(1.0)
            await asyncio.sleep(1.2)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

            async def same() -> bool:
                return world.objects == await truth(admin, path)

            await until(same)

            async def all_met() -> bool:
                # Where the machine is slow some of the faults still wait for a watch to come.
                await proxy.drop_watches("reset")
                return reflector.stats.relists >= 3 and reflector.stats.restarts >= 3

            await until(all_met)
            await until(same)
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await connection.close()


async def test_wrong_authority_wrong_token_and_missing_rights_are_told_apart(
    control_plane: ControlPlaneHandle, namespace: str, tmp_path: Path
) -> None:
    token = await asyncio.to_thread(editor_token, control_plane, namespace)

    async def ask(server: str, ca: Path, token: str) -> None:
        connection = await connect(kubeconfig(tmp_path, server, ca, token=token))
        try:
            await KubeClient(connection).get("/api/v1/nodes", retry=False)
        finally:
            await connection.close()

    with pytest.raises(Unauthorized, match=r"refused the credentials \(kubeconfig .*user u\)"):
        await ask(control_plane.url, control_plane.ca, "nonsense")
    with pytest.raises(Forbidden, match=r"cannot list resource .*RBAC manifests"):
        await ask(control_plane.url, control_plane.ca, token)
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(_self_signed())
    with pytest.raises(Unreachable, match="cannot be verified"):
        await ask(control_plane.url, stranger, token)


async def test_as_the_node_only_its_own_things_can_be_read(
    admin: KubeClient, namespace: str
) -> None:
    node = f"imp-{namespace[-6:]}"
    await admin.create("/api/v1/nodes", json.dumps({"metadata": {"name": node}}).encode())
    try:
        body = await admin.get(f"/api/v1/nodes/{node}", impersonate=node)
        assert decode_partial(body).metadata.name == node
        await make(admin, f"/api/v1/namespaces/{namespace}/secrets", "s")
        with pytest.raises(Forbidden, match="no relationship found"):
            await admin.get(f"/api/v1/namespaces/{namespace}/secrets/s", impersonate=node)
    finally:
        await admin.delete(f"/api/v1/nodes/{node}")


def _self_signed() -> str:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stranger")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
