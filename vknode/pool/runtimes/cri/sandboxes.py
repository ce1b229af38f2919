"""Sandboxes: run, stop, remove, and what of ours is in the runtime.

CRI removes a sandbox's containers with it, but ended instances must outlive a lost
network. So an earlier attempt's sandbox that has containers is only stopped, and goes
when everything of the UID goes; one without is removed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from vknode.pool.runtimes.cri import layout
from vknode.pool.runtimes.cri.client import CriClient, NotFound, Reserved
from vknode.pool.runtimes.cri.containers import CALL, Containers, ref_of
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import (
    Failure,
    Image,
    ObservedContainer,
    ObservedSandbox,
    ObservedState,
    RunningSandbox,
)

# RunPodSandbox may load kernel modules, pull the pause image, ask a slow CNI plugin.
_RUN = 240.0
# Status calls at once while an inventory is taken.
_INVENTORY_WIDTH = 8
_STATES = {
    cri_pb2.CONTAINER_CREATED: ObservedState.CREATED,
    cri_pb2.CONTAINER_RUNNING: ObservedState.RUNNING,
    cri_pb2.CONTAINER_EXITED: ObservedState.EXITED,
    # The runtime could not find out, usually after a crash of the shim.
    cri_pb2.CONTAINER_UNKNOWN: ObservedState.RUNNING,
}


class Sandboxes:
    def __init__(self, client: CriClient, containers: Containers, known: Known, pool: str) -> None:
        self._client = client
        self._containers = containers
        self._known = known
        self._pool = pool
        self._making: dict[str, set[asyncio.Task[RunningSandbox]]] = {}

    async def run(self, config: cri_pb2.PodSandboxConfig, handler: str) -> RunningSandbox:
        """Raises Failure("FailedCreatePodSandBox"); then nothing of this attempt is left.

        A cancelled call goes on in the background, for a runtime may finish a sandbox
        after its caller is gone; `remove_all` waits for it, so that nothing is missed.
        """
        uid = config.metadata.uid
        if uid in self._making:
            await asyncio.wait(list(self._making[uid]))
        task = asyncio.create_task(self._make(config, handler))
        making = self._making.setdefault(uid, set())
        making.add(task)
        task.add_done_callback(lambda done: self._made(uid, done))
        return await asyncio.shield(task)

    def _made(self, uid: str, task: asyncio.Task[RunningSandbox]) -> None:
        making = self._making[uid]
        making.discard(task)
        if not making:
            del self._making[uid]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may

    async def close(self) -> None:
        """Gives up what is still being made."""
        left = [task for making in self._making.values() for task in making]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _make(self, config: cri_pb2.PodSandboxConfig, handler: str) -> RunningSandbox:
        uid, attempt = config.metadata.uid, config.metadata.attempt
        if attempt > 0:
            await self._clear_earlier(uid, attempt)
        request = cri_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        try:
            sandbox_id = await self._run(request)
            self._known.sandboxes[sandbox_id] = uid
            self._known.name_pod(uid, config.metadata.namespace, config.metadata.name)
            status = await self.status(sandbox_id)
        except NotFound as error:
            raise Failure("FailedCreatePodSandBox", str(error)) from None
        if status is None:
            raise Failure("FailedCreatePodSandBox", "the sandbox ended right after its start")
        return RunningSandbox(uid, sandbox_id, attempt, _ips(status), status.created_at)

    async def _run(self, request: cri_pb2.RunPodSandboxRequest) -> str:
        for last in (False, True):
            try:
                answer = await self._client.call(
                    "FailedCreatePodSandBox",
                    self._client.runtime.RunPodSandbox(request, timeout=_RUN),
                )
            except Reserved as error:
                # An answer was lost. What it made is not trusted: it may be half done.
                if last:
                    raise Failure("FailedCreatePodSandBox", str(error)) from None
                meta = request.config.metadata
                for item in await self.find({layout.POD_UID: meta.uid}):
                    if item.metadata.attempt == meta.attempt:
                        await self.remove(item.id)
            else:
                return answer.pod_sandbox_id
        raise AssertionError("unreachable")

    async def _clear_earlier(self, uid: str, attempt: int) -> None:
        sandboxes = await self.find({layout.POD_UID: uid})
        containers = await self._containers.find({layout.POD_UID: uid})
        used = {container.pod_sandbox_id for container in containers}
        for item in sandboxes:
            if item.metadata.attempt >= attempt:
                continue
            await self.stop(item.id)
            if item.id not in used:
                await self.remove(item.id)

    async def status(self, sandbox_id: str) -> cri_pb2.PodSandboxStatus | None:
        request = cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id)
        try:
            answer = await self._client.call(
                "PodSandboxStatus", self._client.runtime.PodSandboxStatus(request, timeout=30)
            )
        except NotFound:
            return None
        return answer.status

    async def find(self, selector: dict[str, str]) -> Sequence[cri_pb2.PodSandbox]:
        request = cri_pb2.ListPodSandboxRequest(
            filter=cri_pb2.PodSandboxFilter(label_selector={layout.POOL: self._pool, **selector})
        )
        answer = await self._client.call(
            "ListPodSandbox", self._client.runtime.ListPodSandbox(request, timeout=60)
        )
        return answer.items

    async def stop(self, sandbox_id: str) -> None:
        """Processes, network and IPs go. Unknown or stopped: no error."""
        self._known.stopping.add(sandbox_id)
        request = cri_pb2.StopPodSandboxRequest(pod_sandbox_id=sandbox_id)
        with contextlib.suppress(NotFound):
            await self._client.call(
                "KillPodSandbox", self._client.runtime.StopPodSandbox(request, timeout=CALL)
            )

    async def remove(self, sandbox_id: str) -> None:
        """With its containers. Unknown: no error."""
        await self.stop(sandbox_id)
        request = cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id)
        with contextlib.suppress(NotFound):
            await self._client.call(
                "RemovePodSandbox", self._client.runtime.RemovePodSandbox(request, timeout=CALL)
            )
        self._known.forget_sandbox(sandbox_id)

    async def stop_all(self, uid: str) -> None:
        for item in await self.find({layout.POD_UID: uid}):
            await self.stop(item.id)

    async def remove_all(self, uid: str) -> None:
        """Every sandbox of a UID and containers that lost theirs."""
        if uid in self._making:
            await asyncio.wait(list(self._making[uid]))
        for item in await self.find({layout.POD_UID: uid}):
            await self.remove(item.id)
        for container in await self._containers.find({layout.POD_UID: uid}):
            await self._containers.remove(ref_of(container))
        self._containers.forget(uid)
        self._known.forget_uid(uid)

    async def inventory(self) -> list[ObservedSandbox]:
        """Everything of this pool; fills what events are understood by."""
        sandboxes, containers = await asyncio.gather(self.find({}), self._containers.find({}))
        width = asyncio.Semaphore(_INVENTORY_WIDTH)

        async def look(item: cri_pb2.PodSandbox) -> cri_pb2.PodSandboxStatus | None:
            async with width:
                return await self.status(item.id)

        async def look_into(item: cri_pb2.Container) -> ObservedContainer | None:
            async with width:
                status = await self._containers.status(item.id)
            return None if status is None else self._observed(status)

        states = await asyncio.gather(*map(look, sandboxes))
        instances = await asyncio.gather(*map(look_into, containers))
        by_uid: dict[str, list[ObservedContainer]] = {}
        for instance in instances:
            if instance is not None:
                self._known.containers[instance.ref.id] = instance.ref
                self._known.started[instance.ref.id] = instance.started_at
                if instance.state is ObservedState.EXITED:
                    self._known.ended.add(instance.ref.id)
                by_uid.setdefault(instance.ref.uid, []).append(instance)
        newest: dict[str, cri_pb2.PodSandboxStatus] = {}
        for state in states:
            if state is None:
                continue
            uid = state.metadata.uid
            self._known.sandboxes[state.id] = uid
            for annotation, known in (
                (layout.STORAGE_LIMITS, self._known.storage_limits),
                (layout.HOST_PORTS, self._known.host_ports),
            ):
                if state.annotations.get(annotation):
                    known[uid] = state.annotations[annotation]
            self._known.name_pod(uid, state.metadata.namespace, state.metadata.name)
            if state.state != cri_pb2.SANDBOX_READY:
                self._known.stopping.add(state.id)  # its end is told by `ready`
            if uid not in newest or newest[uid].metadata.attempt < state.metadata.attempt:
                newest[uid] = state
        return [
            ObservedSandbox(
                uid=uid,
                id=state.id,
                attempt=state.metadata.attempt,
                ready=state.state == cri_pb2.SANDBOX_READY,
                ips=_ips(state),
                created_at=state.created_at,
                containers=tuple(
                    sorted(by_uid.get(uid, ()), key=lambda c: (c.ref.name, c.ref.attempt))
                ),
            )
            for uid, state in newest.items()
        ]

    def _observed(self, status: cri_pb2.ContainerStatus) -> ObservedContainer:
        state = _STATES[status.state]
        return ObservedContainer(
            ref=ref_of(status),
            state=state,
            image=Image(
                reference=status.annotations.get(layout.IMAGE_REFERENCE, status.image.image),
                id=status.annotations.get(layout.IMAGE_DIGEST, status.image_ref),
            ),
            started_at=status.started_at,
            exit=self._containers.exit_of(status) if state is ObservedState.EXITED else None,
        )


def _ips(status: cri_pb2.PodSandboxStatus) -> tuple[str, ...]:
    if layout.HOST_IPS in status.annotations:
        return tuple(filter(None, status.annotations[layout.HOST_IPS].split(",")))
    first = [status.network.ip] if status.network.ip else []
    return (*first, *(ip.ip for ip in status.network.additional_ips))
