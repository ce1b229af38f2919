"""What is not there, and what stops the server from starting. Who may ask: `test_access.py`."""

import asyncio
import socket
import ssl
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


async def test_a_client_ca_that_is_removed_is_trusted_no_more(
    tmp_path: Path, authority: Authority
) -> None:
    """Neither by a new connection nor by one that is open; one that was there before is added
    the same way."""
    other = Authority(tmp_path / "other", "other-ca")
    bundle = tmp_path / "client-ca.crt"
    bundle.write_bytes(authority.pem + other.pem)
    api = KubeletApi(
        LocalBackend(tmp_path), LocalNodes(), make_settings(authority, client_ca=bundle), Rules()
    )
    url = f"https://127.0.0.1:{await api.start()}/pods"

    def connection(client: Authority) -> aiohttp.ClientSession:
        context = client_context(authority, client.issue("client", API_SERVER))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))

    async def status(client: Authority) -> int:
        async with connection(client) as http, http.get(url) as response:
            return response.status

    try:
        async with connection(authority) as good, connection(other) as bad:
            for http in (good, bad):
                async with http.get(url) as response:
                    assert response.status == 200
            bundle.write_bytes(authority.pem)
            api.reload_certificates()
            async with good.get(url) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await bad.get(url)
        assert await status(authority) == 200
        with pytest.raises(aiohttp.ClientError):
            await status(other)
        bundle.write_bytes(other.pem)
        api.reload_certificates()
        assert await status(other) == 200
    finally:
        await api.stop()


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
        async with asyncio.timeout(10):
            while await asyncio.to_thread(ssl.get_server_certificate, address) == before:
                await asyncio.sleep(0.02)
    finally:
        await api.stop()
