"""Who gets a watch where there are not enough: what containers see comes first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.kube.scripted import ScriptedServer, failure, plain_connection
from vknode.agent.reference_index import RefKey
from vknode.agent.reference_watches import ReferenceWatches
from vknode.kube.client import KubeClient


def key(name: str) -> RefKey:
    return RefKey("configmaps", "default", name)


class Quiet(ScriptedServer):
    """Watches stay open and tell nothing; nothing can be read."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return await failure(500, "InternalError")(request)
        return await super()._answer(request)


class World:
    def __init__(self, watches: ReferenceWatches) -> None:
        self.watches = watches

    def mounts(self, name: str) -> None:
        """A Pod of that name shows such an object in a volume."""
        self.watches.use(name, "node", {key(name): "5"}, urgent=False)

    def starts_with(self, name: str) -> None:
        """A Pod of that name has its variables from such an object."""
        self.watches.use(name, "node", {}, {key(name): "5"}, urgent=False)

    async def until(
        self, watched: set[str], polled: set[str] | None = None, unwatched: set[str] | None = None
    ) -> None:
        watches = self.watches

        def now() -> list[set[str]]:
            groups = (watches._watches, watches._polled, watches._unwatched)
            return [{one.name for one in group} for group in groups]

        wanted = [watched, polled or set(), unwatched or set()]
        try:
            async with asyncio.timeout(30):
                while now() != wanted:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{now()}") from None


@asynccontextmanager
async def watching(limit: int, linger: float = 30.0) -> AsyncIterator[World]:
    async with Quiet() as server:
        connection = plain_connection(server.url)
        watches = ReferenceWatches(
            KubeClient(connection),
            lambda uid: None,
            limit=limit,
            settle=0.0,
            linger=linger,
            poll=(0.05, 0.1),
        )
        task = asyncio.create_task(watches.run())
        try:
            yield World(watches)
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await connection.close()


async def test_variables_give_their_watches_up_to_what_containers_see() -> None:
    async with watching(4) as world:
        for number in range(4):
            world.starts_with(f"env{number}")
        await world.until({"env0", "env1"}, unwatched={"env2", "env3"})
        for number in range(2):
            world.mounts(f"vol{number}")
        await world.until({"env0", "env1", "vol0", "vol1"}, unwatched={"env2", "env3"})
        for number in range(2, 4):
            world.mounts(f"vol{number}")
        volumes = {f"vol{number}" for number in range(4)}
        variables = {f"env{number}" for number in range(4)}
        await world.until(volumes, unwatched=variables)
        world.mounts("vol4")
        await world.until(volumes, {"vol4"}, variables)
        assert world.watches.counts == {"watched": 4, "polled": 1, "unwatched": 4}


async def test_what_a_pod_mounts_besides_is_no_object_of_variables_any_more() -> None:
    async with watching(2) as world:
        world.starts_with("both")
        await world.until({"both"})
        world.watches.use("other", "node", {key("both"): "5"}, urgent=False)
        for name in ("vol0", "vol1"):
            world.mounts(name)
        await world.until({"both", "vol0"}, {"vol1"})
        # Nobody sees it any more: its watch may go, and does.
        world.watches.drop("other")
        await world.until({"vol0", "vol1"}, unwatched={"both"})


async def test_variables_are_watched_again_when_there_is_room() -> None:
    async with watching(2, linger=0.0) as world:
        world.starts_with("env")
        for name in ("vol0", "vol1"):
            world.mounts(name)
        await world.until({"vol0", "vol1"}, unwatched={"env"})
        for name in ("vol0", "vol1"):
            world.watches.drop(name)
        await world.until({"env"})
        world.watches.drop("env")
        await world.until(set())


async def test_a_watch_that_lingers_for_nobody_makes_room_too() -> None:
    async with watching(1) as world:
        world.mounts("before")
        await world.until({"before"})
        world.watches.drop("before")
        world.mounts("now")
        await world.until({"now"})
