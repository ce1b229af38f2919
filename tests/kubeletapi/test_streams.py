"""How tasks of a stream end: waited for, and seen."""

from __future__ import annotations

import asyncio
import gc

import pytest
import structlog

from vknode.kubeletapi.streams import cancel_and_wait


async def until_cancelled_then(error: Exception) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        raise error


async def test_what_failed_before_is_seen_also_where_the_caller_is_cancelled() -> None:
    unseen: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, what: unseen.append(what))

    async def fail() -> None:
        raise ValueError("before")

    async def end() -> None:
        failed = asyncio.create_task(fail())
        slow = asyncio.create_task(until_cancelled_then(ValueError("on the way out")))
        await asyncio.sleep(0)
        await cancel_and_wait(failed, slow)

    ending = asyncio.create_task(end())
    await asyncio.sleep(0.005)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError), structlog.testing.capture_logs() as lines:
        await ending
    gc.collect()
    await asyncio.sleep(0)
    assert unseen == []
    assert [line["reason"] for line in lines] == ["on the way out"]


async def test_a_client_that_has_gone_is_no_failure() -> None:
    task = asyncio.create_task(until_cancelled_then(ConnectionResetError("gone")))
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as lines:
        await cancel_and_wait(task)
    assert lines == []
