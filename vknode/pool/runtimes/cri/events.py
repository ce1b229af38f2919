"""Who ended, told by the runtime; and whether the runtime is there at all.

Theory of operation
-------------------
One task keeps one stream open and one slow check of the runtime's status beside it
(a runtime can hang with its socket open). What the stream says becomes IDs; what an ID
means is looked up by the owner. Three kinds of stream, chosen at connect:

  containerd's own events   any containerd. Its CRI events exist only from 2.0 on, and
                            there each one reached a single subscriber for long, so a
                            second client would have stolen ours.
  CRI's GetContainerEvents  other runtimes (CRI-O with enable_pod_events)
  a list, every few seconds where the runtime refuses CRI's events

  state      means                                       leaves by
  ---------  ------------------------------------------  ---------------------------------
  opening    stream asked for, not proven to be there    proof → EventsLost, open
  open       every end is seen                           stream or check fails → doubtful
  doubtful   one quick check of the status               good → opening; bad → away
  away       HealthChanged(False) was told; tried again  good → HealthChanged(True), opening
             with growing, jittered pauses

A subscription of containerd gives no sign of life, so we publish an event of our own
until it comes back through the stream: then, and not before, nothing can be missed.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog

from vknode.pool.runtimes.cri import features as features_
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.wire import containerd_events_pb2, cri_pb2
from vknode.pool.runtimes.facts import EventsLost, HealthChanged

log = structlog.get_logger()

NAMESPACE = "k8s.io"  # where every containerd keeps what CRI made
_TOPIC = "/vknode/subscribed"
_PROOF = "vknode.dev/Subscribed"
_CHECK = 5.0  # seconds that a status answer may take
_FIRST_CHECK = 2.0
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The first process of a container or sandbox ended, as the stream says."""

    id: str
    exit_code: int | None = None
    finished_at: int = 0


class _Broken(Exception):
    """The stream ended; `refused` where the runtime does not offer it."""

    def __init__(self, refused: bool = False) -> None:
        super().__init__()
        self.refused = refused


Emit = Callable[[Ended | EventsLost | HealthChanged], Awaitable[None]]
Poll = Callable[[], Awaitable[list[str]]]


class EventWatch:
    """Runs until cancelled; `emit` gets everything, in order. `poll` lists the IDs that
    have ended by now (only asked where there is no stream)."""

    def __init__(
        self,
        client: CriClient,
        features: Callable[[], features_.Features],
        emit: Emit,
        poll: Poll,
        *,
        status_interval: float,
        list_interval: float,
    ) -> None:
        self._client = client
        self._features = features
        self._emit = emit
        self._poll = poll
        self._status_interval = status_interval
        self._list_interval = list_interval
        self._listing = False

    async def run(self) -> None:
        while True:
            reason = await self._open()
            problem = await self._check(_FIRST_CHECK)
            if problem is None:
                await asyncio.sleep(random.uniform(0, _PAUSE))
                continue
            log.warning("cri_runtime_away", endpoint=self._client.endpoint, after=reason)
            await self._emit(HealthChanged(False, *problem))
            pause = _PAUSE
            while await self._check(_FIRST_CHECK) is not None:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 1.5, _LONGEST_PAUSE)
            log.info("cri_runtime_back", endpoint=self._client.endpoint)
            await self._emit(HealthChanged(True))

    async def _open(self) -> str:
        """Returns why the stream, or the runtime's health, is gone."""
        stream = asyncio.ensure_future(self._stream())
        health = asyncio.ensure_future(self._stay_healthy())
        try:
            await asyncio.wait((stream, health), return_when=asyncio.FIRST_COMPLETED)
            done = stream if stream.done() else health
            try:
                await done
            except _Broken as broken:
                if broken.refused:
                    log.info("cri_events_refused", endpoint=self._client.endpoint)
                    self._listing = True
            return "stream" if done is stream else "status"
        finally:
            for task in (stream, health):
                task.cancel()
            await asyncio.gather(stream, health, return_exceptions=True)

    async def _stay_healthy(self) -> None:
        while True:
            if await self._check(_CHECK) is not None:
                return
            await asyncio.sleep(self._status_interval * random.uniform(0.9, 1.1))

    async def _check(self, limit: float) -> tuple[str, str] | None:
        """Reason and message of what is wrong with the runtime now."""
        try:
            status = await self._client.runtime.Status(cri_pb2.StatusRequest(), timeout=limit)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"the container runtime did not answer within {limit:g} s"
                return "RuntimeUnresponsive", message
            return (
                "RuntimeUnavailable",
                f"the container runtime at {self._client.endpoint} cannot be reached",
            )
        return features_.not_ready(status)

    async def _stream(self) -> None:
        try:
            if self._listing:
                await self._follow_list()
            elif self._features().containerd:
                await self._follow_containerd()
            else:
                await self._follow_cri()
        except grpc.aio.AioRpcError as error:
            raise _Broken(error.code() == grpc.StatusCode.UNIMPLEMENTED) from None

    async def _follow_containerd(self) -> None:
        stub = self._client.containerd_events
        call = stub.Subscribe(
            containerd_events_pb2.SubscribeRequest(
                filters=[
                    f'topic=="/tasks/exit",namespace=="{NAMESPACE}"',
                    f'topic=="{_TOPIC}",namespace=="{NAMESPACE}"',
                ]
            )
        )
        secret = secrets.token_bytes(16)
        proof = asyncio.ensure_future(self._prove(secret))
        try:
            async for envelope in call:
                if envelope.topic == _TOPIC:
                    if envelope.event.value == secret and not proof.done():
                        proof.cancel()
                        await self._emit(EventsLost())
                elif envelope.event.type_url.endswith("containerd.events.TaskExit"):
                    task = containerd_events_pb2.TaskExit.FromString(envelope.event.value)
                    if task.id in ("", task.container_id):  # else an exec ended
                        await self._emit(
                            Ended(
                                task.container_id,
                                # A shell's view of the status: 128 + signal, as CRI's.
                                task.exit_status,
                                task.exited_at.ToNanoseconds(),
                            )
                        )
        finally:
            proof.cancel()
            await asyncio.gather(proof, return_exceptions=True)
            call.cancel()

    async def _prove(self, secret: bytes) -> None:
        request = containerd_events_pb2.PublishRequest(topic=_TOPIC)
        request.event.type_url = _PROOF
        request.event.value = secret
        pause = 0.005
        while True:
            try:
                await self._client.containerd_events.Publish(
                    request, metadata=(("containerd-namespace", NAMESPACE),), timeout=_CHECK
                )
            except grpc.aio.AioRpcError as error:
                log.debug("cri_proof_failed", code=error.code().name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _follow_cri(self) -> None:
        call = self._client.runtime.GetContainerEvents(cri_pb2.GetEventsRequest())
        try:
            # Nothing proves this subscription; a round trip behind it comes close.
            lost = asyncio.ensure_future(self._after_round_trip())
            try:
                async for event in call:
                    if event.container_event_type == cri_pb2.CONTAINER_STOPPED_EVENT:
                        await self._emit(Ended(event.container_id))
            finally:
                lost.cancel()
                await asyncio.gather(lost, return_exceptions=True)
        finally:
            call.cancel()

    async def _after_round_trip(self) -> None:
        await self._check(_CHECK)
        await self._emit(EventsLost())

    async def _follow_list(self) -> None:
        await self._emit(EventsLost())
        while True:
            for ended in await self._poll():
                await self._emit(Ended(ended))
            await asyncio.sleep(self._list_interval)
