"""Who is let through, and what everybody else gets to see: a status, a kubelet's words, no more."""

import asyncio
import base64
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import structlog

from tests.kubeletapi.conftest import client_context, make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from vknode.devcluster.pki import Authority, KeyPair
from vknode.kubeletapi import (
    AuthenticationSettings,
    AuthorizationSettings,
    BackendError,
    KubeletApi,
    User,
)

UNAUTHORIZED = (401, "Unauthorized")
SCRAPER = User("system:serviceaccount:monitoring:prometheus", groups=("system:serviceaccounts",))
EXEC = "/exec/default/web/main?command=true&output=1"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode(),
}


@dataclass
class Api:
    api: KubeletApi
    backend: LocalBackend
    rules: Rules
    authority: Authority
    url: str

    async def ask(
        self,
        path: str,
        *,
        pair: KeyPair | None = None,
        token: str = "",
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        context = client_context(self.authority, pair)
        headers = dict(headers or {})
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
            http.request(method, self.url + path, headers=headers) as response,
        ):
            if response.status == 101:
                return 101, ""
            return response.status, await response.text()

    def client(self, name: str, *groups: str) -> KeyPair:
        return self.authority.issue("some-client", name, organizations=groups)


@pytest.fixture
async def started(tmp_path: Path, authority: Authority) -> AsyncIterator[Api]:
    backend = LocalBackend(tmp_path / "rootfs")
    backend.root.mkdir()
    backend.add("web")
    backend.exec_error = BackendError("no process is needed here")
    rules = Rules(tokens={"scraper": SCRAPER})
    api = KubeletApi(backend, LocalNodes(), make_settings(authority), rules)
    port = await api.start()
    try:
        yield Api(api, backend, rules, authority, f"https://127.0.0.1:{port}")
    finally:
        await api.stop()


def allow(*rights: str) -> Rules:
    """`user verb subresource node` lines."""
    return Rules(
        allows=lambda a: f"{a.user.name} {a.verb} {a.subresource} {a.node or '*'}" in rights,
        tokens={"scraper": SCRAPER},
    )


@pytest.mark.parametrize("path", ["/healthz", "/pods", "/nothing", EXEC, "/containerLogs/a/b/c"])
async def test_nobody_is_anonymous(started: Api, path: str) -> None:
    for token in ("", "unknown"):
        assert await started.ask(path, token=token) == UNAUTHORIZED
        assert await started.ask(path, token=token, method="POST") == UNAUTHORIZED
    assert started.rules.asked == []


async def test_a_certificate_without_a_user_is_nobodys(started: Api) -> None:
    assert await started.ask("/pods", pair=started.client("")) == UNAUTHORIZED


@pytest.mark.parametrize(
    "valid",
    [(timedelta(hours=-2), timedelta(hours=-1)), (timedelta(hours=1), timedelta(hours=2))],
    ids=["expired", "not yet valid"],
)
async def test_a_certificate_out_of_its_time_ends_in_the_handshake(
    started: Api, valid: tuple[timedelta, timedelta]
) -> None:
    pair = started.authority.issue("late", API_SERVER, valid=valid)
    with pytest.raises(aiohttp.ClientError):
        await started.ask("/pods", pair=pair)
    assert started.rules.asked == []


async def test_a_servers_certificate_is_no_clients(started: Api) -> None:
    pair = started.authority.issue("serving-2", API_SERVER, ips=["127.0.0.1"])
    with pytest.raises(aiohttp.ClientError):
        await started.ask("/pods", pair=pair)


async def test_the_api_server_asks_for_what_it_needs(started: Api) -> None:
    pair = started.client(API_SERVER, "ops", "dev")
    assert (await started.ask("/pods", pair=pair))[0] == 200
    assert (await started.ask(EXEC, pair=pair, headers=UPGRADE))[0] == 101
    first, second = started.rules.asked
    assert first.user.groups == ("ops", "dev", "system:authenticated")
    assert (first.verb, first.subresource, first.node) == ("get", "pods", "")
    assert (second.verb, second.subresource, second.node) == ("create", "proxy", "node-1")


async def test_who_may_not_is_told_what_was_missing(started: Api) -> None:
    jane = started.client("jane")
    for method, path, verb, subresources in (
        ("GET", "/pods", "get", "pods proxy"),
        ("GET", "/metrics", "get", "metrics"),
        ("GET", "/stats/summary", "get", "stats"),
        ("GET", "/containerLogs/default/web/main", "get", "proxy"),
        ("POST", "/attach/default/web/main", "create", "proxy"),
        ("GET", EXEC, "create", "proxy"),
        ("DELETE", "/nothing", "delete", "proxy"),
    ):
        assert await started.ask(path, pair=jane, method=method) == (
            403,
            f"Forbidden (user=jane, verb={verb}, resource=nodes, "
            f"subresource(s)=[{subresources}])\n",
        )


async def test_who_may_not_does_not_learn_what_is_there(started: Api) -> None:
    jane = started.client("jane")
    there = await started.ask("/containerLogs/default/web/main", pair=jane)
    assert there[0] == 403
    assert there == await started.ask("/containerLogs/default/nothing/main", pair=jane)


async def test_one_right_of_two_suffices_and_serves_nothing_else(started: Api) -> None:
    for right in ("pods", "proxy"):
        started.rules.allows = allow(f"{SCRAPER.name} get {right} *").allows
        started.rules.asked.clear()
        fresh = started.client(f"other-{right}")
        assert (await started.ask("/pods", pair=fresh))[0] == 403
    started.rules.allows = allow(f"{SCRAPER.name} get metrics *").allows
    assert (await started.ask("/metrics", token="scraper"))[0] == 200
    assert (await started.ask("/pods", token="scraper"))[0] == 403
    assert (await started.ask(EXEC, token="scraper", headers=UPGRADE))[0] == 403


async def test_get_on_proxy_runs_nothing(started: Api) -> None:
    started.rules.allows = lambda access: access.verb == "get"
    started.backend.exec_error = None
    assert (await started.ask("/pods", token="scraper"))[0] == 200
    status, text = await started.ask(EXEC, token="scraper", headers=UPGRADE)
    assert status == 403
    assert "verb=create" in text
    assert started.backend.sessions == []


@pytest.mark.parametrize(
    "path",
    [
        "/metrics/../exec/default/web/main?command=true&output=1",
        "/metrics/%2e%2e/exec/default/web/main?command=true&output=1",
        "//exec/default/web/main?command=true&output=1",
        "/./exec/default/web/main?command=true&output=1",
        "/%65xec/default/web/main?command=true&output=1",
        "/exec%2fdefault/web/main?command=true&output=1",
    ],
)
async def test_no_spelling_of_a_path_is_authorized_as_another(started: Api, path: str) -> None:
    """What may be scraped opens nothing that runs: the path goes out as it is written here."""
    started.rules.allows = lambda access: access.verb == "get"
    started.backend.exec_error = None
    host, port = "127.0.0.1", int(started.url.rsplit(":", 1)[1])
    context = client_context(started.authority, None)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    head = {"Host": "x", "Authorization": "Bearer scraper", **UPGRADE}
    lines = [f"GET {path} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    await writer.wait_closed()
    assert status in (b"400", b"403", b"404")
    assert started.backend.sessions == []


async def test_a_token_beside_a_certificate_that_names_nobody(started: Api) -> None:
    started.rules.allows = lambda access: access.user.name == SCRAPER.name
    assert (await started.ask("/pods", pair=started.client(""), token="scraper"))[0] == 200


async def test_a_token_among_websocket_protocols(started: Api) -> None:
    started.rules.allows = lambda access: access.user.name == SCRAPER.name
    name = "base64url.bearer.authorization.k8s.io."
    hidden = name + base64.urlsafe_b64encode(b"scraper").decode().rstrip("=")
    offer = {**UPGRADE, "Sec-WebSocket-Protocol": f"{hidden}, v5.channel.k8s.io"}
    assert (await started.ask(EXEC, headers=offer))[0] == 101
    unknown = {**UPGRADE, "Sec-WebSocket-Protocol": f"{hidden}, nothing.known"}
    status, text = await started.ask(EXEC, headers=unknown)
    assert status == 403
    assert hidden not in text and "nothing.known" in text
    bad = {**UPGRADE, "Sec-WebSocket-Protocol": f"{name}c2VjcmV0, v5.channel.k8s.io"}
    assert await started.ask(EXEC, headers=bad) == UNAUTHORIZED


async def test_without_an_answer_nothing_is_allowed(started: Api) -> None:
    started.rules.failure = "cannot connect to https://10.0.0.1:6443"
    assert await started.ask("/pods", token="scraper") == UNAUTHORIZED
    assert await started.ask("/pods", pair=started.client(API_SERVER)) == (
        500,
        f"Authorization error (user={API_SERVER}, verb=get, resource=nodes, subresource=pods)",
    )


async def test_a_right_on_one_node_is_none_on_another(started: Api) -> None:
    """On the port of all nodes: the Pod that is named tells the node."""
    started.backend.add("other", namespace="default", uid="u-2", node="node-2")
    started.rules.allows = allow(f"{SCRAPER.name} get proxy node-1").allows
    logs = "/containerLogs/default/{}/nothing"
    status, text = await started.ask(logs.format("web"), token="scraper")
    assert (status, text) == (404, 'container "nothing" not found in pod "web"')
    assert (await started.ask(logs.format("other"), token="scraper"))[0] == 403
    # All nodes' Pods are for who may read all nodes'.
    assert (await started.ask("/pods", token="scraper"))[0] == 403
    assert (await started.ask("/healthz", token="scraper"))[0] == 403


async def test_a_pod_that_moves_during_the_review_is_not_found(started: Api) -> None:
    started.rules.allows = allow(f"{SCRAPER.name} get proxy node-1").allows
    started.rules.gate.clear()
    path = "/containerLogs/default/web/main"
    asking = asyncio.create_task(started.ask(path, token="scraper"))
    async with asyncio.timeout(60):
        while not started.rules.reviewed:
            await asyncio.sleep(0)
        started.rules.gate.set()
        started.rules.gate = asyncio.Event()
        while not started.rules.asked:
            await asyncio.sleep(0)
        started.backend.add("web", uid="u-9", node="node-2")
        started.rules.gate.set()
        assert await asking == (404, 'pod "web" does not exist')


async def test_each_node_has_its_own_port_and_its_own_rights(started: Api) -> None:
    port = await started.api.open_node("node-2")
    started.rules.allows = allow(f"{SCRAPER.name} get pods node-2").allows
    own = Api(
        started.api, started.backend, started.rules, started.authority, f"https://127.0.0.1:{port}"
    )
    assert (await own.ask("/pods", token="scraper"))[0] == 200
    assert (await started.ask("/pods", token="scraper"))[0] == 403
    assert {access.node for access in started.rules.asked} == {"node-2", ""}


async def test_tokens_can_be_off(tmp_path: Path, authority: Authority) -> None:
    settings = make_settings(authority, authentication=AuthenticationSettings(token_review=False))
    rules = Rules(tokens={"scraper": SCRAPER}, allows=lambda _: True)
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, rules)
    started = Api(api, LocalBackend(tmp_path), rules, authority, "")
    started.url = f"https://127.0.0.1:{await api.start()}"
    try:
        assert await started.ask("/pods", token="scraper") == UNAUTHORIZED
        assert rules.reviewed == []
        assert (await started.ask("/pods", pair=started.client("jane")))[0] == 200
    finally:
        await api.stop()


async def test_always_allow_is_said_and_still_wants_to_know_who(
    tmp_path: Path, authority: Authority
) -> None:
    settings = make_settings(authority, authorization=AuthorizationSettings(always_allow=True))
    rules = Rules(allows=lambda _: False)
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, rules)
    with structlog.testing.capture_logs() as lines:
        port = await api.start()
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert warning["event"] == "kubelet_api_authorizes_everybody"
    assert "development only" in warning["hint"]
    started = Api(api, LocalBackend(tmp_path), rules, authority, f"https://127.0.0.1:{port}")
    try:
        assert (await started.ask("/pods", pair=started.client("jane")))[0] == 200
        assert await started.ask("/pods") == UNAUTHORIZED
        assert rules.asked == []
    finally:
        await api.stop()


async def test_the_log_names_who_was_refused_and_no_secret(started: Api) -> None:
    with structlog.testing.capture_logs() as lines:
        await started.ask("/pods?token=in-query", token="scraper")
        await started.ask("/pods", token="a-bad-token")
        started.rules.failure = "no answer"
        await started.ask("/pods", token="another-bad-token")
    text = repr(lines)
    (refused,) = [line for line in lines if line["event"] == "kubelet_api_forbidden"]
    assert refused["user"] == SCRAPER.name
    for secret in ("scraper'", "bad-token", "in-query", "Bearer"):
        assert secret not in text


async def test_a_users_name_stays_on_one_line_of_the_log(started: Api) -> None:
    with structlog.testing.capture_logs() as lines:
        await started.ask("/pods", pair=started.client("jane\nagent_ready"))
    (refused,) = [line for line in lines if line["event"] == "kubelet_api_forbidden"]
    assert refused["user"] == "jane?agent_ready"


async def test_a_plain_http_client_gets_nothing(started: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(started.url.rsplit(":", 1)[1]))
    writer.write(b"GET /pods HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        assert b"HTTP" not in await reader.read()
    writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /pods HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer VERYSECRET\x01\r\n\r\n",
        b"GET /exec/a/b/c?command=VERYSECRET" + b"x" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /pods HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer VERYSECRET"
        + b"x" * 300_000
        + b"\r\n\r\n",
        b"VERYSECRET\r\n\r\n",
        b"GET /pods HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer VERYSECRET\xff\r\n\r\n",
        b"GET /exec/default/web/main?command=true&output=1 HTTP/1.1\r\nHost: x\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.VERYSECRET\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_its_bytes_reach_no_log(
    started: Api, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    root = _Kept()
    logging.getLogger().addHandler(root)
    port = int(started.url.rpartition(":")[2])
    for pair in (None, started.client("jane")):
        context = client_context(started.authority, pair)
        with structlog.testing.capture_logs() as lines:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(head)
            async with asyncio.timeout(60):
                answer = await reader.read(64)
            writer.transport.abort()
        assert answer.startswith((b"HTTP/1.1 40", b"HTTP/1.0 40")), answer
        assert "VERYSECRET" not in repr(lines)
    logging.getLogger().removeHandler(root)
    assert root.texts == []
    shown = capfd.readouterr()
    assert "VERYSECRET" not in shown.out + shown.err


class _Kept(logging.Handler):
    """What libraries say by themselves."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


async def test_who_is_nobody_keeps_no_connection(started: Api) -> None:
    port = int(started.url.rpartition(":")[2])
    context = client_context(started.authority, None)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /pods HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(60):
        answer = await reader.read()  # to the end
    writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 401")


async def test_a_command_may_be_as_long_as_a_script(started: Api) -> None:
    status, _ = await started.ask("/pods?x=" + "y" * 100_000, pair=started.client(API_SERVER))
    assert status == 200
