"""The client retries what may be retried, says what is wrong, and never tells a secret."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.kube.scripted import ScriptedServer, body, failure, plain_connection
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, Forbidden, Unauthorized, Unreachable


@asynccontextmanager
async def scripted(token: str | None = None) -> AsyncIterator[tuple[ScriptedServer, KubeClient]]:
    async with ScriptedServer() as server:
        connection = plain_connection(server.url, token=token)
        client = KubeClient(
            connection, make_backoff=lambda: Backoff(base=0.01, maximum=0.05, jitter=0)
        )
        try:
            yield server, client
        finally:
            await connection.close()


async def test_get_returns_the_bytes_and_carries_the_token() -> None:
    async with scripted(token="Bearer abc") as (server, client):
        server.script = [body(200, {"a": 1})]
        assert await client.get("/api/v1/nodes", query={"limit": "5"}) == b'{"a": 1}'
        assert server.seen[0].headers["Authorization"] == "Bearer abc"
        assert server.seen[0].query == {"limit": "5"}


async def test_impersonation_acts_as_the_node() -> None:
    async with scripted() as (server, client):
        server.script = [body(200, {})]
        await client.get("/api/v1/namespaces/a/secrets/b", impersonate="cell-1")
        assert server.seen[0].headers["Impersonate-User"] == "system:node:cell-1"
        assert server.seen[0].groups == ["system:nodes"]


async def test_429_waits_as_long_as_the_server_says_even_for_post() -> None:
    async with scripted() as (server, client):
        server.script = [
            failure(429, "TooManyRequests", headers={"Retry-After": "1"}),
            body(201, {"ok": True}),
        ]
        started = time.monotonic()
        await client.create("/api/v1/nodes", b"{}")
        assert time.monotonic() - started >= 1.0
        assert [s.method for s in server.seen] == ["POST", "POST"]


@pytest.mark.parametrize("code", [500, 502, 503, 504])
async def test_server_errors_are_tried_again_for_what_can_be_replayed(code: int) -> None:
    async with scripted() as (server, client):
        server.script = [failure(code, "InternalError")] * 2 + [body(200, {})]
        await client.patch_status("/api/v1/nodes/a", b"{}")
        assert [s.path for s in server.seen] == ["/api/v1/nodes/a/status"] * 3


async def test_post_is_not_repeated_after_a_server_error() -> None:
    async with scripted() as (server, client):
        server.script = [failure(500, "InternalError", "boom"), body(201, {})]
        with pytest.raises(ApiError) as caught:
            await client.create("/api/v1/nodes", b"{}")
        assert caught.value.status == 500
        assert len(server.seen) == 1


async def test_a_post_that_changes_nothing_is_repeated_like_a_get() -> None:
    async with scripted() as (server, client):

        async def cut(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        server.script = [failure(503, "ServiceUnavailable"), cut, body(201, {"ok": True})]
        assert await client.create("/reviews", b"{}", replayable=True) == b'{"ok": true}'
        assert [s.method for s in server.seen] == ["POST"] * 3


async def test_retry_false_makes_exactly_one_attempt() -> None:
    async with scripted() as (server, client):
        server.script = [failure(503, "ServiceUnavailable")]
        with pytest.raises(ApiError):
            await client.put("/x", b"{}", retry=False)
        assert len(server.seen) == 1


async def test_a_lost_connection_is_tried_again_and_then_reported() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with scripted() as (server, client):
        server.script = [cut] * 30
        with pytest.raises(Unreachable, match="lost"):
            await client.get("/api/v1/nodes")
        assert len(server.seen) >= 5


async def test_slow_server_is_an_unreachable_one_after_the_timeout() -> None:
    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async with scripted() as (server, client):
        # The connection is there already: it is not this one that takes its time.
        server.script = [body(200, {}), slow]
        await client.get("/api/v1/nodes")
        with pytest.raises(Unreachable, match="did not answer in time"):
            await client.get("/api/v1/nodes", timeout=0.1, retry=False)


async def test_refused_connection_says_where_and_what_to_do() -> None:
    async with ScriptedServer() as server:
        url = server.url
    connection = plain_connection(url)
    try:
        client = KubeClient(connection, make_backoff=lambda: Backoff(base=0.01, maximum=0.01))
        with pytest.raises(Unreachable) as caught:
            await client.get("/version")
        assert url in str(caught.value)
        assert "check that the API server runs" in str(caught.value)
        assert not caught.value.sent
    finally:
        await connection.close()


async def test_401_and_403_name_the_credentials_source_not_the_token() -> None:
    async with scripted(token="Bearer s3cret") as (server, client):
        server.script = [failure(401, "Unauthorized"), failure(403, "Forbidden", "cannot list")]
        with pytest.raises(Unauthorized) as unauthorized:
            await client.get("/a")
        with pytest.raises(Forbidden) as forbidden:
            await client.get("/b")
        for error in (unauthorized.value, forbidden.value):
            assert "test" in str(error)
            assert "s3cret" not in str(error)
        assert "cannot list" in str(forbidden.value)


async def test_error_without_a_status_body_keeps_its_text() -> None:
    async def html(_: web.Request) -> web.StreamResponse:
        return web.Response(status=418, text="a proxy's page")

    async with scripted() as (server, client):
        server.script = [html]
        with pytest.raises(ApiError, match="a proxy's page") as caught:
            await client.get("/a")
        assert caught.value.status == 418


async def test_conflict_and_exists_are_told_apart() -> None:
    async with scripted() as (server, client):
        server.script = [failure(409, "Conflict"), failure(409, "AlreadyExists")]
        with pytest.raises(ApiError) as conflict:
            await client.put("/a", b"{}")
        with pytest.raises(ApiError) as exists:
            await client.create("/a", b"{}")
        assert conflict.value.is_conflict and not conflict.value.is_already_exists
        assert exists.value.is_already_exists and not exists.value.is_conflict


async def test_delete_carries_the_uid_it_means() -> None:
    async with scripted() as (server, client):
        server.script = [body(200, {})]
        await client.delete("/api/v1/nodes/a", uid="u-1", grace_period_seconds=0)
        assert b'"preconditions":{"uid":"u-1"}' in server.seen[0].body
        assert b'"gracePeriodSeconds":0' in server.seen[0].body
