"""What is not there, and what stops the server from starting. Who may ask: `test_access.py`."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.kubeletapi.conftest import Served, client_context, make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from vknode.devcluster.pki import Authority
from vknode.kubeletapi import KubeletApi, KubeletApiError


async def ask(served: Served, context: ssl.SSLContext, path: str = "/healthz") -> tuple[int, str]:
    connector = aiohttp.TCPConnector(ssl=context)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(served.url + path) as response,
    ):
        return response.status, await response.text()


async def test_health_and_pods(served: Served) -> None:
    served.backend.add("web")
    assert await served.get("/healthz") == (200, "ok")
    async with served.http.get(served.url + "/pods") as response:
        assert response.content_type == "application/json"
        body = await response.json()
    assert body["kind"] == "PodList"
    assert [pod["metadata"]["name"] for pod in body["items"]] == ["web"]


async def test_a_certificate_of_another_ca_does_not_get_through_tls(
    served: Served, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "strange").issue("client", API_SERVER)
    context = client_context(served.authority, stranger)
    with pytest.raises(aiohttp.ClientError):
        await ask(served, context)


async def test_unknown_paths_and_methods(served: Served) -> None:
    assert await served.get("/nothing") == (404, "404 page not found\n")
    assert (await served.get("/exec/default/web"))[0] == 404
    async with served.http.post(served.url + "/containerLogs/a/b/c") as response:
        assert (response.status, await response.text()) == (405, "Method Not Allowed")
        assert response.headers["Allow"] == "GET"


async def test_a_port_in_use_is_said(tmp_path: Path, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = KubeletApi(
            LocalBackend(tmp_path), LocalNodes(), make_settings(authority, port=port), Rules()
        )
        with pytest.raises(KubeletApiError, match=f"port {port}: Address already in use"):
            await api.start()


@pytest.mark.parametrize("setting", ["serving_cert", "serving_key", "client_ca"])
@pytest.mark.parametrize("content", [None, "not PEM"])
async def test_a_bad_file_is_named(
    tmp_path: Path, authority: Authority, setting: str, content: str | None
) -> None:
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_text(content)
    api = KubeletApi(
        LocalBackend(tmp_path), LocalNodes(), make_settings(authority, **{setting: path}), Rules()
    )
    words = {"serving_cert": "servingCert", "serving_key": "servingKey", "client_ca": "clientCA"}
    with pytest.raises(KubeletApiError) as caught:
        await api.start()
    assert words[setting] in str(caught.value)
    assert str(path) in str(caught.value)


async def test_renewed_certificates_are_used_by_later_connections(
    served: Served, authority: Authority
) -> None:
    address = ("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    before = await asyncio.to_thread(ssl.get_server_certificate, address)
    make_settings(authority)  # issues a new serving certificate into the same files
    served.api.reload_certificates()
    after = await asyncio.to_thread(ssl.get_server_certificate, address)
    assert before != after


@dataclass
class TwoCas:
    """A server that trusts clients of two CAs, until `remove_other`."""

    api: KubeletApi
    backend: LocalBackend
    url: str
    authority: Authority
    other: Authority
    bundle: Path

    def session(self, client: Authority) -> aiohttp.ClientSession:
        context = client_context(self.authority, client.issue("client", API_SERVER))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))

    async def status(self, session: aiohttp.ClientSession) -> int:
        async with session.get(f"{self.url}/pods") as response:
            return response.status

    def remove_other(self) -> None:
        self.bundle.write_bytes(self.authority.pem)

    def serving_pem(self) -> bytes:
        pair = self.authority.issue("issued", "system:node:a", ips=["127.0.0.1"])
        return pair.key.read_bytes() + pair.cert.read_bytes()


@pytest.fixture
async def two_cas(tmp_path: Path, authority: Authority) -> AsyncIterator[TwoCas]:
    other = Authority(tmp_path / "other", "other-ca")
    bundle = tmp_path / "client-ca.crt"
    bundle.write_bytes(authority.pem + other.pem)
    backend = LocalBackend(tmp_path)
    backend.add("web")
    settings = make_settings(authority, client_ca=bundle, serving_cert=None, serving_key=None)
    api = KubeletApi(backend, LocalNodes(), settings, Rules())
    url = f"https://127.0.0.1:{await api.start()}"
    world = TwoCas(api, backend, url, authority, other, bundle)
    api.use_certificate(world.serving_pem())
    yield world
    await api.stop()
    assert api.running_streams == 0


@pytest.mark.parametrize("by", ["a look at the files", "a renewed serving certificate"])
async def test_a_client_ca_that_is_removed_is_trusted_no_more(two_cas: TwoCas, by: str) -> None:
    """Neither by a new connection nor by one that is open; one that was there before is added
    the same way."""
    good, bad = two_cas.session(two_cas.authority), two_cas.session(two_cas.other)
    async with good, bad:
        assert [await two_cas.status(one) for one in (good, bad)] == [200, 200]
        two_cas.remove_other()
        if by == "a look at the files":
            two_cas.api.reload_certificates()
        else:
            two_cas.api.use_certificate(two_cas.serving_pem())
        assert await two_cas.status(good) == 200
        async with asyncio.timeout(60):
            with pytest.raises(aiohttp.ClientError):
                await two_cas.status(bad)
        two_cas.bundle.write_bytes(two_cas.other.pem)
        two_cas.api.reload_certificates()
        assert await two_cas.status(bad) == 200


async def test_who_was_in_the_middle_of_a_handshake_has_to_begin_anew(two_cas: TwoCas) -> None:
    address = ("127.0.0.1", int(two_cas.url.rpartition(":")[2]))
    context = client_context(two_cas.authority, two_cas.other.issue("client", API_SERVER))
    with socket.create_connection(address, 20) as raw:
        await asyncio.sleep(0.1)  # it is let in
        two_cas.remove_other()
        two_cas.api.reload_certificates()

        def go_on() -> bytes:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
                tls.sendall(b"GET /pods HTTP/1.1\r\nHost: x\r\n\r\n")
                return tls.recv(1)

        with pytest.raises(OSError):
            assert not await asyncio.to_thread(go_on)
            raise ConnectionResetError("ended without a word")


async def test_sessions_go_on_when_a_client_ca_is_removed(two_cas: TwoCas) -> None:
    """To their end, as before: what the client says is heard."""
    url = f"{two_cas.url}/exec/default/web/main?command=cat&input=1&output=1"
    async with (
        two_cas.session(two_cas.authority) as http,
        http.ws_connect(url, protocols=("v5.channel.k8s.io",)) as socket_,
        asyncio.timeout(60),
    ):
        assert await socket_.receive_bytes() == b"\1"
        for word in (b"one", b"two"):
            await socket_.send_bytes(b"\0" + word)
            assert await socket_.receive_bytes() == b"\1" + word
            two_cas.remove_other()
            two_cas.api.reload_certificates()
        await socket_.send_bytes(b"\xff\0")
        assert b"Success" in await socket_.receive_bytes()
        assert (await socket_.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_a_certificate_from_memory(tmp_path: Path, authority: Authority) -> None:
    """Without one no handshake succeeds; one that does not fit changes nothing."""
    settings = make_settings(authority, serving_cert=None, serving_key=None)
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, Rules())
    address = ("127.0.0.1", await api.start())
    try:
        with pytest.raises(OSError):
            await asyncio.to_thread(ssl.get_server_certificate, address)
        pair = authority.issue("issued", "system:node:a", ips=["127.0.0.1"])
        api.use_certificate(pair.key.read_bytes() + pair.cert.read_bytes())
        served = await asyncio.to_thread(ssl.get_server_certificate, address)
        assert served == pair.cert.read_text()
        other = authority.issue("another", "system:node:a", ips=["127.0.0.1"])
        for pem in (b"nothing", other.key.read_bytes() + pair.cert.read_bytes()):
            with pytest.raises(KubeletApiError, match="cannot be used"):
                api.use_certificate(pem)
        api.reload_certificates()
        assert await asyncio.to_thread(ssl.get_server_certificate, address) == served
    finally:
        await api.stop()


async def test_files_that_are_renewed_under_a_running_server_are_taken(
    tmp_path: Path, authority: Authority
) -> None:
    settings = make_settings(authority, certificate_check_interval=0.05)
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, Rules())
    address = ("127.0.0.1", await api.start())
    try:
        before = await asyncio.to_thread(ssl.get_server_certificate, address)
        assert settings.serving_cert is not None
        settings.serving_cert.write_text("half of a certificate")
        await asyncio.sleep(0.12)
        assert await asyncio.to_thread(ssl.get_server_certificate, address) == before
        make_settings(authority)  # issues a new one into the same files
        async with asyncio.timeout(60):
            while await asyncio.to_thread(ssl.get_server_certificate, address) == before:
                await asyncio.sleep(0.02)
    finally:
        await api.stop()
