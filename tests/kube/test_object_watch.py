"""One object is followed through everything that can happen to its watch, without a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from tests.kube.scripted import ScriptedServer, event, failure, plain_connection, pod, status, watch
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.object_watch import ObjectWatch, Target
from vknode.kube.reflector import ReflectorOptions, ReflectorStats

TARGET = Target("/api/v1/namespaces/default/secrets", "s", "cell-1")


class Told:
    def __init__(self) -> None:
        self.told: list[str] = []

    def present(self, resource_version: str, raw: msgspec.Raw) -> None:
        assert msgspec.json.decode(raw)["metadata"]["resourceVersion"] == resource_version
        self.told.append(f"+{resource_version}")

    def absent(self, resource_version: str, last: msgspec.Raw | None) -> None:
        self.told.append(f"-{resource_version}{'' if last is None else ' last'}")

    async def until(self, *told: str) -> None:
        try:
            async with asyncio.timeout(60):
                while self.told != list(told):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(self.told) from None


@asynccontextmanager
async def watching(
    server: ScriptedServer,
    told: Told,
    aim: Callable[[], Target | None] = lambda: TARGET,
    stats: ReflectorStats | None = None,
    read_timeout: float = 60.0,
) -> AsyncIterator[asyncio.Task[None]]:
    connection = plain_connection(server.url)
    options = ReflectorOptions(
        read_timeout=read_timeout, make_backoff=lambda: Backoff(base=0.01, maximum=0.05, jitter=0)
    )
    watched = ObjectWatch(KubeClient(connection), aim, told, options, stats)
    task = asyncio.create_task(watched.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


def bookmark(revision: int) -> bytes:
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(revision)}})


async def test_one_request_as_the_node_tells_what_is_and_what_becomes_of_it() -> None:
    told = Told()
    async with ScriptedServer() as server:
        server.script = [
            watch(
                event("ADDED", pod("s", "u", 5)),
                event("MODIFIED", pod("s", "u", 7)),
                event("DELETED", pod("s", "u", 9)),
                bookmark(12),
            )
        ]
        async with watching(server, told):
            await told.until("+5", "+7", "-9 last")
            await server.until_seen(2)
        first, again = server.seen[:2]
    assert first.path == TARGET.path
    assert first.query["fieldSelector"] == "metadata.name=s"
    assert "resourceVersion" not in first.query
    assert first.headers["Impersonate-User"] == "system:node:cell-1"
    assert again.query["resourceVersion"] == "12"


async def test_a_bookmark_before_any_event_means_that_it_is_not_there() -> None:
    told = Told()
    async with ScriptedServer() as server:
        server.script = [watch(bookmark(3), bookmark(4), event("ADDED", pod("s", "u", 6)))]
        async with watching(server, told):
            await told.until("-3", "+6")


async def test_what_expired_is_looked_at_anew() -> None:
    told, stats = Told(), ReflectorStats()
    async with ScriptedServer() as server:
        server.script = [
            watch(event("ADDED", pod("s", "u", 5)), event("ERROR", status(410, "Expired"))),
            watch(event("ADDED", pod("s", "u", 8))),
            failure(410, "Expired"),
            watch(event("ADDED", pod("s", "u", 9)), hold=60.0),
        ]
        async with watching(server, told, stats=stats):
            await told.until("+5", "+8", "+9")
        assert (stats.relists, stats.restarts, stats.events) == (2, 0, 3)
        versions = [seen.query.get("resourceVersion") for seen in server.seen[:4]]
    assert versions == [None, None, "8", None]


async def test_refusals_silence_and_broken_lines_are_waited_out() -> None:
    told, stats = Told(), ReflectorStats()
    async with ScriptedServer() as server:
        server.script = [
            failure(403, "Forbidden", "no relationship found"),
            failure(429, "TooManyRequests"),
            watch(event("ADDED", pod("s", "u", 5)), b'{"type":"MODI', abort=True),
            watch(hold=60.0),  # nobody speaks
            watch(b"<html>\n"),
            watch(event("ADDED", pod("s", "u", 9)), hold=60.0),
        ]
        # Long enough for a machine that is busy not to be silent, too.
        async with watching(server, told, stats=stats, read_timeout=3.0):
            await told.until("+5", "+9")
        assert (stats.restarts, stats.events, stats.watches) == (5, 2, 6)


async def test_another_node_asks_when_the_first_has_no_right_any_more() -> None:
    told = Told()
    nodes = iter(["cell-1", "cell-2"])
    async with ScriptedServer() as server:
        server.script = [failure(403, "Forbidden"), watch(event("ADDED", pod("s", "u", 5)))]
        async with watching(server, told, lambda: TARGET._replace(node=next(nodes, "cell-3"))):
            await told.until("+5")
        users = [seen.headers["Impersonate-User"] for seen in server.seen[:2]]
    assert users == ["system:node:cell-1", "system:node:cell-2"]


async def test_another_object_is_looked_at_from_its_start() -> None:
    told = Told()
    targets = iter([TARGET, TARGET._replace(path="/api/v1/namespaces/other/secrets")])
    async with ScriptedServer() as server:
        server.script = [
            watch(event("ADDED", pod("s", "u", 50))),
            watch(event("ADDED", pod("s", "v", 7))),
        ]
        async with watching(server, told, lambda: next(targets, None)) as task:
            await told.until("+50", "+7")
            await asyncio.wait_for(task, 60)  # nothing left to aim at
        assert [seen.query.get("resourceVersion") for seen in server.seen] == [None, None]
