"""Threads that may hang: who waits for them, and what becomes of what they have made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from vknode.pool.runtimes.cri.patience import Patience


class Work:
    """Hangs until `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()
        self.undone = 0

    def __call__(self) -> str:
        self.began.set()
        self.go.wait(30)
        return "made"

    def undo(self) -> None:
        self.undone += 1


async def test_a_result_is_taken_or_undone() -> None:
    patience = Patience(2, 30)
    work = Work()
    work.go.set()
    assert await patience.run("a", work, work.undo) == "made" and work.undone == 0
    with pytest.raises(ZeroDivisionError):
        await patience.run("a", lambda: 1 // 0)
    hanging = Work()
    task = asyncio.create_task(patience.run("a", hanging, hanging.undo))
    while not hanging.began.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    hanging.go.set()
    assert await patience.run("a", lambda: hanging.undone) == 1, "the next one comes after that"


async def test_hanging_threads_leave_the_others_their_places() -> None:
    patience = Patience(2, 30)

    async def soon(uid: str, work: Callable[[], str]) -> str:
        patience.seconds = 0.05
        try:
            return await patience.run(uid, work)
        finally:
            patience.seconds = 30

    hanging, last = Work(), Work()
    for _ in range(4):
        with pytest.raises(TimeoutError):
            await soon("a", hanging)  # no second thread, no second place
    assert await patience.run("b", lambda: "other") == "other"
    with pytest.raises(TimeoutError):
        await soon("b", last)
    with pytest.raises(TimeoutError):
        await soon("c", lambda: "all places are taken")
    last.go.set()
    assert await patience.run("b", lambda: "again") == "again"
    assert await patience.run("c", lambda: "free") == "free"
    hanging.go.set()


async def test_an_undo_that_fails_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    patience = Patience(1, 0.05)
    hanging = Work()

    def fail() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(TimeoutError):
        await patience.run("a", hanging, fail)
    patience.seconds = 30
    hanging.go.set()
    assert await patience.run("a", lambda: "again") == "again"
    assert said
