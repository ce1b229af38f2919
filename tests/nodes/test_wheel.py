"""Delays: every key comes due once, in order, never to two workers at the same time."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from vknode.agent.wheel import DelayQueue, WorkQueue

KEYS = st.integers(0, 7)


class DelayQueueMachine(RuleBasedStateMachine):
    """The heap against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: DelayQueue[int] = DelayQueue()
        self.model: dict[int, float] = {}
        self.now = 0.0

    @rule(key=KEYS, delay=st.floats(0, 10))
    def schedule(self, key: int, delay: float) -> None:
        self.queue.schedule(key, self.now + delay)
        self.model[key] = self.now + delay

    @rule(key=KEYS, delay=st.floats(0, 10))
    def schedule_by(self, key: int, delay: float) -> None:
        self.queue.schedule_by(key, self.now + delay)
        self.model[key] = min(self.model.get(key, float("inf")), self.now + delay)

    @rule(key=KEYS)
    def cancel(self, key: int) -> None:
        assert self.queue.cancel(key) == (self.model.pop(key, None) is not None)

    @rule(step=st.floats(0, 5))
    def advance(self, step: float) -> None:
        self.now += step
        while (key := self.queue.pop_due(self.now)) is not None:
            when = self.model.pop(key)
            assert when <= self.now
            assert all(when <= other for other in self.model.values())
        assert all(when > self.now for when in self.model.values())
        assert self.queue.next_time() == min(self.model.values(), default=None)
        assert len(self.queue) == len(self.model)


TestDelayQueue = DelayQueueMachine.TestCase


@given(st.integers(1, 500))
def test_rescheduling_does_not_grow_the_heap(times: int) -> None:
    queue: DelayQueue[str] = DelayQueue()
    for number in range(times):
        queue.schedule("a", float(number))
    assert len(queue._heap) <= 65
    assert queue.pop_due(1e9) == "a"
    assert queue.pop_due(1e9) is None


async def test_a_key_added_while_processed_comes_again_but_not_at_the_same_time() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    other = asyncio.create_task(queue.get())
    await asyncio.sleep(0.02)
    assert not other.done()
    queue.done("a")
    assert await asyncio.wait_for(other, 30) == "a"
    queue.done("a")
    queue.close()


async def test_earlier_wins_and_forget_drops() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 30) == "a"
    queue.add("a")
    queue.forget("a")
    queue.done("a")
    queue.add("b")
    queue.forget("b")
    assert len(queue) == 0
    queue.close()


async def test_a_cancelled_worker_loses_no_key() -> None:
    queue: WorkQueue[int] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(1)  # wakes the first, which is cancelled before it runs
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 30) == 1
    queue.done(1)
    queue.close()


async def test_many_keys_few_workers_all_in_time() -> None:
    queue: WorkQueue[int] = WorkQueue()
    loop = asyncio.get_running_loop()
    due = {key: loop.time() + (key % 10) * 0.02 for key in range(500)}
    for key, when in due.items():
        queue.add_after(key, when - loop.time())
    late: list[float] = []

    async def work() -> None:
        while True:
            key = await queue.get()
            late.append(loop.time() - due.pop(key))
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(3)]
    async with asyncio.timeout(60):
        while due:
            await asyncio.sleep(0.01)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    queue.close()
    assert min(late) > -0.005
