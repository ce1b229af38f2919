"""Runtimes that are not containerd: CRI's own events, and none at all.

A stand-in answers the few calls that matter here, as CRI-O does: real gRPC on a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.cri.harness import Harness
from vknode.pool.runtimes.cri import containers, layout
from vknode.pool.runtimes.cri.wire import cri_pb2, cri_pb2_grpc
from vknode.pool.runtimes.facts import (
    ContainerExited,
    EventsLost,
    Failure,
    HealthChanged,
    SandboxDied,
)

POOL = "p"


class StandIn(cri_pb2_grpc.RuntimeServiceServicer):
    """One container whose end the test decides. `events` False: they are refused."""

    def __init__(self, *, events: bool) -> None:
        self.has_events = events
        self.state = cri_pb2.CONTAINER_RUNNING
        self.network_ready = True
        self.sandbox_state: cri_pb2.PodSandboxState.ValueType | None = None  # None: no sandbox
        self.ended = asyncio.Event()
        self.listed = 0

    def status_of_container(self) -> cri_pb2.ContainerStatus:
        return cri_pb2.ContainerStatus(
            id="c1",
            metadata=cri_pb2.ContainerMetadata(name="main", attempt=2),
            state=self.state,
            started_at=1,
            finished_at=2,
            exit_code=3,
            labels={layout.POOL: POOL, layout.POD_UID: "u1", layout.CONTAINER_NAME: "main"},
        )

    async def Version(self, request: Any, context: Any) -> cri_pb2.VersionResponse:
        return cri_pb2.VersionResponse(runtime_name="cri-o", runtime_version="1.33.1")

    async def Status(self, request: Any, context: Any) -> cri_pb2.StatusResponse:
        answer = cri_pb2.StatusResponse()
        answer.status.conditions.add(type="RuntimeReady", status=True)
        answer.status.conditions.add(
            type="NetworkReady",
            status=self.network_ready,
            reason="" if self.network_ready else "NetworkPluginNotReady",
            message="" if self.network_ready else "no CNI configuration",
        )
        answer.runtime_handlers.add(name="").features.recursive_read_only_mounts = True
        answer.runtime_handlers.add(name="kata")
        return answer

    async def GetContainerEvents(
        self, request: Any, context: Any
    ) -> AsyncIterator[cri_pb2.ContainerEventResponse]:
        if not self.has_events:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no events")
        await self.ended.wait()
        for kind in (cri_pb2.CONTAINER_STOPPED_EVENT, cri_pb2.CONTAINER_DELETED_EVENT):
            yield cri_pb2.ContainerEventResponse(container_id="c1", container_event_type=kind)
        await asyncio.Event().wait()

    async def ListContainers(self, request: Any, context: Any) -> cri_pb2.ListContainersResponse:
        self.listed += 1
        answer = cri_pb2.ListContainersResponse()
        answer.containers.add(
            id="c1",
            metadata=cri_pb2.ContainerMetadata(name="main", attempt=2),
            state=self.state,
            labels=dict(self.status_of_container().labels),
        )
        return answer

    async def ListPodSandbox(self, request: Any, context: Any) -> cri_pb2.ListPodSandboxResponse:
        answer = cri_pb2.ListPodSandboxResponse()
        if self.sandbox_state is not None:
            answer.items.add(id="s1", state=self.sandbox_state)
        return answer

    async def PodSandboxStatus(
        self, request: Any, context: Any
    ) -> cri_pb2.PodSandboxStatusResponse:
        answer = cri_pb2.PodSandboxStatusResponse()
        answer.status.id, answer.status.metadata.uid = "s1", "u1"
        answer.status.state = self.sandbox_state or cri_pb2.SANDBOX_READY
        return answer

    async def ContainerStatus(self, request: Any, context: Any) -> cri_pb2.ContainerStatusResponse:
        return cri_pb2.ContainerStatusResponse(status=self.status_of_container())

    def end(self) -> None:
        self.state = cri_pb2.CONTAINER_EXITED
        self.ended.set()


class StandInImages(cri_pb2_grpc.ImageServiceServicer):
    """None is there."""

    async def ListImages(self, request: Any, context: Any) -> cri_pb2.ListImagesResponse:
        return cri_pb2.ListImagesResponse()


@pytest.fixture(params=[True, False], ids=["cri-events", "list"])
async def stand_in(request: pytest.FixtureRequest, short_path: Path) -> AsyncIterator[StandIn]:
    # The calls that no test makes stay UNIMPLEMENTED, as in the generated base.
    made = StandIn(events=request.param)  # type: ignore[abstract]  # only in its stub
    server = grpc.aio.server()
    cri_pb2_grpc.add_RuntimeServiceServicer_to_server(made, server)
    images = StandInImages()  # type: ignore[abstract]  # only in its stub
    cri_pb2_grpc.add_ImageServiceServicer_to_server(images, server)
    server.add_insecure_port(f"unix:{short_path}/cri.sock")
    await server.start()
    yield made
    await server.stop(None)


@pytest.fixture
async def on_it(stand_in: StandIn, short_path: Path) -> AsyncIterator[Harness]:
    made = Harness(short_path / "cri.sock", short_path / "s", POOL, list_interval=0.05)
    await made.connect()
    yield made
    await made.disconnect()


async def test_an_end_is_told_once_whatever_the_runtime_offers(
    stand_in: StandIn, on_it: Harness
) -> None:
    assert on_it.info.handlers == ("kata",)
    await on_it.event(EventsLost)
    stand_in.end()
    exited = await on_it.event(ContainerExited)
    assert (exited.ref.uid, exited.ref.attempt, exited.exit.exit_code) == ("u1", 2, 3)
    assert exited.exit.reason == "Error"
    before = stand_in.listed
    async with asyncio.timeout(60):
        while not stand_in.has_events and stand_in.listed < before + 3:
            await asyncio.sleep(0.01)
    assert sum(isinstance(e, ContainerExited) for e in on_it.events) == 1


@pytest.mark.parametrize("stand_in", [False], ids=["list"], indirect=True)
async def test_a_list_tells_a_lost_sandbox_once(stand_in: StandIn, on_it: Harness) -> None:
    stand_in.sandbox_state = cri_pb2.SANDBOX_READY
    await on_it.runtime.inventory()
    stand_in.sandbox_state = cri_pb2.SANDBOX_NOTREADY
    died = await on_it.event(SandboxDied)
    assert (died.uid, died.id) == ("u1", "s1")
    before = stand_in.listed
    async with asyncio.timeout(60):
        while stand_in.listed < before + 3:
            await asyncio.sleep(0.01)
    assert on_it.events.count(died) == 1


async def test_an_end_that_the_runtime_never_books_is_looked_up(
    stand_in: StandIn, on_it: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for ever, it would keep a place from the ends of others."""
    monkeypatch.setattr(containers, "_SETTLE", 0.05)
    await on_it.event(EventsLost)
    on_it.events.clear()
    if stand_in.has_events:
        stand_in.ended.set()  # CRI's event, which has no exit code
        await on_it.event(EventsLost)
    with pytest.raises(Failure, match="does not show"):
        await on_it.runtime._containers.wait_exit("c1")
    assert not any(isinstance(event, ContainerExited) for event in on_it.events)


async def test_a_network_that_is_not_ready_is_no_health(stand_in: StandIn, on_it: Harness) -> None:
    stand_in.network_ready = False
    away = await on_it.event(HealthChanged, lambda e: not e.healthy)
    assert (away.reason, away.message) == ("NetworkPluginNotReady", "no CNI configuration")
    stand_in.network_ready = True
    await on_it.event(HealthChanged, lambda e: e.healthy)
