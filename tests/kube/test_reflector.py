"""Whatever happens to list and watch, the handler ends up with what the server has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from tests.kube.scripted import (
    ScriptedServer,
    event,
    failure,
    page,
    plain_connection,
    pod,
    status,
    watch,
)
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import Forbidden
from vknode.kube.models import ObjectKey, PartialObject
from vknode.kube.reflector import Reflector, ReflectorOptions

decode = msgspec.json.Decoder(PartialObject).decode


class World:
    """A handler that keeps what exists, and everything it was told in order."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, str]] = {}
        self.told: list[str] = []
        self.syncs = 0

    def upsert(self, obj: PartialObject) -> None:
        meta = obj.metadata
        self.told.append(f"+{meta.name}/{meta.uid}@{meta.resource_version}")
        self.objects[meta.uid] = (meta.name, meta.resource_version)

    def deleted(self, key: ObjectKey, last: PartialObject | None) -> None:
        self.told.append(f"-{key.name}/{key.uid}")
        self.objects.pop(key.uid, None)

    def synced(self) -> None:
        self.syncs += 1

    async def until(self, *uids: str) -> None:
        async with asyncio.timeout(60):
            while set(self.objects) != set(uids):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def reflecting(
    server: ScriptedServer, world: World, read_timeout: float = 60.0
) -> AsyncIterator[Reflector[PartialObject]]:
    connection = plain_connection(server.url)
    reflector = Reflector(
        KubeClient(connection),
        "/api/v1/pods",
        decode,
        world,
        field_selector="spec.nodeName!=",
        options=ReflectorOptions(
            read_timeout=read_timeout,
            make_backoff=lambda: Backoff(base=0.01, maximum=0.05, jitter=0),
        ),
    )
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await connection.close()


async def test_pages_then_watch_from_the_lists_revision() -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([pod("a", "A", 1), pod("b", "B", 2)], 10, token="next"),
            page([pod("c", "C", 3)], 10),
            watch(event("ADDED", pod("d", "D", 11)), event("DELETED", pod("a", "A", 12))),
        ]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("B", "C", "D")
            await server.until_seen(4)
        first, second, third, fourth = server.seen[:4]
        assert first.query["limit"] == "500"
        assert "resourceVersion" not in first.query  # consistent, never from the past
        assert first.query["fieldSelector"] == "spec.nodeName!="
        assert second.query["continue"] == "next"
        assert third.query["resourceVersion"] == "10"
        assert third.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(third.query["timeoutSeconds"]) <= 600
        assert fourth.query["resourceVersion"] == "12"
        assert world.syncs == 1
        assert reflector.stats.lists == 1


async def test_dropped_within_a_line_resumes_without_loss_or_relist() -> None:
    whole = event("ADDED", pod("b", "B", 12))
    async with ScriptedServer() as server:
        server.script = [
            page([pod("a", "A", 1)], 10),
            watch(event("ADDED", pod("x", "X", 11)), whole[:20], abort=True),
            watch(whole),
        ]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("A", "X", "B")
            assert server.seen[2].query["resourceVersion"] == "11"
            assert reflector.stats.relists == 0
            assert reflector.stats.restarts == 1
        assert world.told.count("+b/B@12") == 1


async def test_clean_end_within_a_line_counts_as_broken() -> None:
    whole = event("ADDED", pod("b", "B", 12))
    async with ScriptedServer() as server:
        server.script = [page([], 10), watch(whole[:-5]), watch(whole)]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("B")
            assert reflector.stats.restarts == 1


@pytest.mark.parametrize(
    "gone",
    [failure(410, "Expired"), watch(event("ERROR", status(410, "Expired", "too old")))],
    ids=["as a status", "in the stream"],
)
async def test_410_lists_again_and_tells_what_went_meanwhile(gone: object) -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([pod("a", "A", 1), pod("b", "B", 2), pod("c", "C", 3)], 10),
            gone,  # type: ignore[list-item]  # parametrize loses the type
            # a stays, b is gone, c has become another Pod under its name, d is new
            page([pod("a", "A", 1), pod("c", "C2", 18), pod("d", "D", 19)], 20),
        ]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("A", "C2", "D")
            await server.until_seen(4)
            assert reflector.stats.relists == 1
        assert server.seen[3].query["resourceVersion"] == "20"
        assert world.told == [
            *("+a/A@1", "+b/B@2", "+c/C@3"),
            *("-c/C", "+c/C2@18", "+d/D@19", "-b/B"),
        ]
        assert world.syncs == 2


async def test_same_name_with_another_uid_in_the_watch_is_delete_and_add() -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([pod("a", "A", 1)], 10),
            watch(event("MODIFIED", pod("a", "A2", 11))),
        ]
        world = World()
        async with reflecting(server, world):
            await world.until("A2")
        assert world.told == ["+a/A@1", "-a/A", "+a/A2@11"]


async def test_bookmarks_move_the_revision_and_tell_nobody() -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([], 10),
            watch(event("BOOKMARK", {"metadata": {"resourceVersion": "99"}})),
        ]
        world = World()
        async with reflecting(server, world) as reflector:
            await server.until_seen(3)
            assert server.seen[2].query["resourceVersion"] == "99"
            assert reflector.stats.bookmarks == 1
        assert world.told == []


async def test_500_and_429_are_waited_out() -> None:
    async with ScriptedServer() as server:
        server.script = [
            failure(500, "InternalError"),
            failure(429, "TooManyRequests", headers={"Retry-After": "1"}),
            page([pod("a", "A", 1)], 10),
            failure(429, "TooManyRequests", headers={"Retry-After": "1"}),
            watch(event("ADDED", pod("b", "B", 11))),
        ]
        world = World()
        started = asyncio.get_running_loop().time()
        async with reflecting(server, world) as reflector:
            await world.until("A", "B")
            assert reflector.stats.relists == 0
        assert asyncio.get_running_loop().time() - started >= 2.0


async def test_a_future_revision_refused_for_ever_ends_in_a_relist() -> None:
    too_large = failure(504, "Timeout", "Too large resource version")
    async with ScriptedServer() as server:
        server.script = [page([], 1000), *[too_large] * 3, page([pod("a", "A", 3)], 10)]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("A")
            assert reflector.stats.relists == 1


async def test_expired_continue_token_starts_over_in_one_piece() -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([pod("a", "A", 1)], 10, token="old"),
            failure(410, "Expired"),
            page([pod("b", "B", 2)], 20),
        ]
        world = World()
        async with reflecting(server, world):
            await world.until("B")
        assert "limit" not in server.seen[2].query
        assert "continue" not in server.seen[2].query


async def test_a_silent_connection_is_given_up_and_resumed() -> None:
    async def shows_a(request: web.Request) -> web.StreamResponse:
        added = watch(event("ADDED", pod("a", "A", 11)))
        return await (added if "watch" in request.query else page([pod("a", "A", 11)], 11))(request)

    async with ScriptedServer() as server:
        # More than once: a machine that is busy may be silent for as long.
        server.script = [page([], 10), watch(hold=60.0), *[shows_a] * 20]
        world = World()
        async with reflecting(server, world, read_timeout=0.2):
            await world.until("A")


async def test_silence_twice_in_a_row_ends_in_a_relist() -> None:
    async with ScriptedServer(mute=True) as server:
        server.script = [page([], 1000), page([pod("a", "A", 3)], 9)]
        world = World()
        async with reflecting(server, world, read_timeout=0.2) as reflector:
            await world.until("A")
            assert reflector.stats.relists == 1


async def test_a_strange_object_stops_nobody_else_and_does_not_look_deleted() -> None:
    strange = {"metadata": {"name": "s", "namespace": "default", "labels": 7}}
    async with ScriptedServer() as server:
        server.script = [
            page([pod("s", "S", 1), pod("a", "A", 2)], 10),
            failure(410, "Expired"),
            page([strange, pod("a", "A", 2), pod("b", "B", 3)], 20),
        ]
        world = World()
        async with reflecting(server, world) as reflector:
            await world.until("S", "A", "B")
            assert reflector.stats.undecodable == 1


async def test_missing_rights_at_start_are_said_not_retried() -> None:
    async with ScriptedServer() as server:
        server.script = [failure(403, "Forbidden", "cannot list pods")]
        connection = plain_connection(server.url)
        try:
            reflector = Reflector(KubeClient(connection), "/api/v1/pods", decode, World())
            with pytest.raises(Forbidden, match="cannot list pods"):
                await asyncio.wait_for(reflector.run(), 60)
        finally:
            await connection.close()


async def test_missing_rights_later_are_waited_out() -> None:
    async with ScriptedServer() as server:
        server.script = [
            page([], 10),
            failure(410, "Expired"),
            failure(403, "Forbidden"),
            page([pod("a", "A", 11)], 20),
        ]
        world = World()
        async with reflecting(server, world):
            await world.until("A")
