"""A containerd that goes away and comes back, and what is known of its containers then."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from tests.cri.containerds import Containerd, containerd
from tests.cri.harness import PATIENCE, Harness, pod
from vknode.pool.runtimes.cri.wire import cri_pb2, cri_pb2_grpc
from vknode.pool.runtimes.facts import (
    ContainerExited,
    EventsLost,
    HealthChanged,
    ObservedState,
    RuntimeAway,
)

pytestmark = pytest.mark.containerd


@pytest.fixture(scope="module")
def own_containerd(containerd_programs: dict[str, Path]) -> Iterator[Containerd]:
    with containerd(containerd_programs) as running:
        yield running


@pytest.fixture
async def lonely(own_containerd: Containerd, short_path: Path) -> AsyncIterator[Harness]:
    made = Harness(own_containerd.socket, short_path / "pool", f"p{uuid.uuid4().hex[:8]}")
    await made.connect()
    await made.event(EventsLost)
    yield made
    await made.clear()
    await made.disconnect()


def mark(harness: Harness) -> None:
    harness.events.clear()


async def test_many_ends_at_once_are_all_told(lonely: Harness) -> None:
    spec = pod("sleep 0.3; exit 1")
    sandbox = await lonely.runtime.run_sandbox(spec, 0)
    refs = []
    for number in range(8):
        container = spec.containers[0]
        container.name = f"c{number}"
        refs.append(await lonely.start_in(spec, sandbox, container))
    for ref in refs:
        assert (await lonely.exit_of(ref)).exit_code == 1


async def test_a_restart_of_containerd_is_told_and_loses_no_exit(
    lonely: Harness, own_containerd: Containerd
) -> None:
    _, brief = await lonely.start(pod("sleep 1; exit 6", name="brief"))
    _, lasting = await lonely.start(pod("trap 'exit 8' TERM; echo up; while :; do sleep 0.1; done"))
    await lonely.says(lasting, "up")
    mark(lonely)
    began = time.monotonic()
    await asyncio.to_thread(own_containerd.stop)
    away = await lonely.event(HealthChanged, lambda e: not e.healthy)
    assert time.monotonic() - began < 30
    assert away.reason == "RuntimeUnavailable"
    with pytest.raises(RuntimeAway):
        await lonely.runtime.inventory()
    await asyncio.sleep(1.2)  # `brief` ends while nobody watches
    mark(lonely)
    await asyncio.to_thread(own_containerd.start)
    await lonely.event(HealthChanged, lambda e: e.healthy)
    await lonely.event(EventsLost)
    states = {c.ref: c for s in await lonely.runtime.inventory() for c in s.containers}
    assert states[lasting].state is ObservedState.RUNNING
    ended = states[brief]
    assert ended.state is ObservedState.EXITED or await lonely.exit_of(brief)
    await lonely.runtime.stop_container(lasting, 10)
    assert (await lonely.exit_of(lasting)).exit_code == 8


async def test_a_hanging_containerd_is_noticed(lonely: Harness, own_containerd: Containerd) -> None:
    mark(lonely)
    os.kill(own_containerd.pid, signal.SIGSTOP)
    try:
        away = await lonely.event(HealthChanged, lambda e: not e.healthy)
        assert away.reason == "RuntimeUnresponsive"
    finally:
        os.kill(own_containerd.pid, signal.SIGCONT)
    await lonely.event(HealthChanged, lambda e: e.healthy)
    await lonely.event(EventsLost)
    mark(lonely)
    _, ref = await lonely.start(pod("exit 2"))
    assert (await lonely.exit_of(ref)).exit_code == 2


async def test_a_pool_that_was_away_learns_the_exit_from_the_inventory(lonely: Harness) -> None:
    _, ref = await lonely.start(pod("sleep 0.5; echo said; exit 5"))
    await lonely.disconnect()
    async with grpc.aio.insecure_channel(f"unix:{lonely.options.endpoint}") as channel:
        runtime: cri_pb2_grpc.RuntimeServiceAsyncStub = cri_pb2_grpc.RuntimeServiceStub(channel)
        request = cri_pb2.ContainerStatusRequest(container_id=ref.id)
        async with asyncio.timeout(PATIENCE):
            while (await runtime.ContainerStatus(request)).status.state != cri_pb2.CONTAINER_EXITED:
                await asyncio.sleep(0.05)
    await lonely.restart()
    (found,) = await lonely.runtime.inventory()
    (container,) = found.containers
    assert container.exit is not None and container.exit.exit_code == 5
    assert await lonely.log(ref) == "said\n"


async def test_execs_that_end_are_no_exits(lonely: Harness) -> None:
    _, ref = await lonely.start(pod())
    assert (await lonely.runtime.exec_sync(ref, ["true"], PATIENCE))[0] == 0
    _, other = await lonely.start(pod("exit 0"))
    await lonely.exit_of(other)  # what came before it was seen too
    assert ref not in {e.ref for e in lonely.events if isinstance(e, ContainerExited)}
