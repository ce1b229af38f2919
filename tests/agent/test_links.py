"""What an agent keeps of what its pools announce."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import structlog

from tests.nodes.cells import cell
from vknode.agent.links import Link
from vknode.pool.client import CellsUpdate, SandboxesUpdate, WatchState


class Announcer:
    """A pool that says this of its cells, and nothing of sandboxes."""

    connected = True
    watch_states: Mapping[str, WatchState] = {}

    def __init__(self, *updates: CellsUpdate) -> None:
        self._updates = updates

    async def cells(self) -> AsyncIterator[CellsUpdate]:
        for update in self._updates:
            yield update

    async def sandboxes(self) -> AsyncIterator[SandboxesUpdate]:
        return
        yield

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"nobody asked for {name}")


class Nobody:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"there are no sandboxes: {name}")


async def heard(most: int | None, *updates: CellsUpdate) -> list[str]:
    link = Link("az1", lambda up, down: Announcer(*updates), most_cells=most)
    link.serve(Nobody())
    async with asyncio.timeout(10):
        await link.run()
    return list(link.cells)


def change(*names: str, removed: tuple[str, ...] = (), snapshot: bool = False) -> CellsUpdate:
    return CellsUpdate(snapshot, [cell(name) for name in names], list(removed))


async def test_a_pool_without_end_of_cells_fills_no_memory() -> None:
    """Neither in one list nor one by one; it is said once."""
    ever_more = [change(f"c{number}") for number in range(50)]
    with structlog.testing.capture_logs() as lines:
        assert await heard(3, change("a", "b", snapshot=True), *ever_more) == ["a", "b", "c0"]
        assert await heard(2, change("a", "b", "c", snapshot=True)) == ["a", "b"]
    told = [line for line in lines if line["event"] == "pool_cells_left_out"]
    assert [(line["kept"], line["left_out"]) for line in told] == [(3, 1), (2, 1)]


async def test_a_list_that_is_full_follows_its_cells() -> None:
    updates = (
        change("a", "b", "c", snapshot=True),
        change("b", removed=("a",)),
        change("d"),
        change("e", "d", removed=("e",)),
    )
    assert await heard(2, *updates) == ["b", "d"]
    assert await heard(2, *updates, change("x", "y", "z", snapshot=True)) == ["x", "y"]
    assert await heard(None, *updates) == ["b", "c", "d"]
