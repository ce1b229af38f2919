"""Single container instances: create and start, stop, remove, and how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from vknode.pool.runtimes.cri import layout
from vknode.pool.runtimes.cri.client import CriClient, NotFound, Reserved
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.logfile import tail_text
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import (
    ContainerExit,
    ContainerRef,
    Failure,
    RuntimeAway,
    StartedContainer,
)

# Seconds. As generous as the kubelet's runtimeRequestTimeout.
CALL = 120.0
# What a stop may take beyond its grace, when the machine is busy.
_KILL_SLACK = 120.0
# Until an instance whose start was given up is removed again.
REMOVE_AGAIN = 10.0
# Between an end and the moment the runtime's own books show it, output drained.
_SETTLE = 30.0
MAX_MESSAGE = 4096
_FALLBACK_LINES, _FALLBACK_BYTES = 80, 2048


class Containers:
    def __init__(self, client: CriClient, paths: Layout, pool: str) -> None:
        self._client = client
        self._paths = paths
        self._pool = pool
        # Instances whose start was given up and which could not be removed then.
        self._given_up: dict[tuple[str, str], set[ContainerRef]] = {}
        self._any_given_up = asyncio.Event()

    async def create(
        self,
        sandbox_id: str,
        config: cri_pb2.ContainerConfig,
        sandbox_config: cri_pb2.PodSandboxConfig,
    ) -> str:
        """The new instance's ID. An instance of the same attempt, left by a call whose
        answer was lost, makes way, and one whose start was given up: it may run yet. Raises
        Failure("CreateContainerError")."""
        await self._remove_given_up(
            config.labels[layout.POD_UID], config.labels[layout.CONTAINER_NAME]
        )
        request = cri_pb2.CreateContainerRequest(
            pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config
        )
        for last in (False, True):
            try:
                answer = await self._client.call(
                    "CreateContainerError",
                    self._client.runtime.CreateContainer(request, timeout=CALL),
                )
            except NotFound as error:
                raise Failure("CreateContainerError", str(error)) from None
            except Reserved as error:
                if last:
                    raise Failure("CreateContainerError", str(error)) from None
                await self._make_way(config)
            else:
                return answer.container_id
        raise AssertionError("unreachable")

    async def start(self, ref: ContainerRef) -> StartedContainer:
        """Raises Failure("RunContainerError"); the instance is removed then, at the latest
        before the next one of this container is created."""
        request = cri_pb2.StartContainerRequest(container_id=ref.id)
        try:
            await self._client.call(
                "RunContainerError", self._client.runtime.StartContainer(request, timeout=CALL)
            )
        except (NotFound, Failure) as error:
            try:
                await self.remove(ref)
            except Failure:
                self._given_up.setdefault((ref.uid, ref.name), set()).add(ref)
                self._any_given_up.set()
            if isinstance(error, NotFound):
                raise Failure("RunContainerError", str(error)) from None
            raise
        started = time.time_ns()
        status = await self.status(ref.id)
        if status is None:
            return StartedContainer(ref, started)
        user = None
        if status.user.HasField("linux"):
            linux = status.user.linux
            user = (linux.uid, linux.gid, tuple(linux.supplemental_groups))
        return StartedContainer(ref, status.started_at or started, user)

    async def stop(self, ref: ContainerRef, grace_seconds: float) -> None:
        """As `Runtime.stop_container`."""
        request = cri_pb2.StopContainerRequest(
            container_id=ref.id, timeout=max(0, math.ceil(grace_seconds))
        )
        limit = request.timeout + _KILL_SLACK
        with contextlib.suppress(NotFound):
            await self._client.call(
                "KillContainer", self._client.runtime.StopContainer(request, timeout=limit)
            )

    async def remove(self, ref: ContainerRef) -> None:
        request = cri_pb2.RemoveContainerRequest(container_id=ref.id)
        with contextlib.suppress(NotFound):
            await self._client.call(
                "RemoveContainer", self._client.runtime.RemoveContainer(request, timeout=CALL)
            )

    async def status(self, container_id: str) -> cri_pb2.ContainerStatus | None:
        request = cri_pb2.ContainerStatusRequest(container_id=container_id)
        try:
            answer = await self._client.call(
                "ContainerStatus", self._client.runtime.ContainerStatus(request, timeout=30)
            )
        except NotFound:
            return None
        return answer.status

    async def find(self, selector: dict[str, str]) -> Sequence[cri_pb2.Container]:
        request = cri_pb2.ListContainersRequest(
            filter=cri_pb2.ContainerFilter(label_selector={layout.POOL: self._pool, **selector})
        )
        answer = await self._client.call(
            "ListContainers", self._client.runtime.ListContainers(request, timeout=60)
        )
        return answer.containers

    async def wait_exit(
        self, container_id: str, *, exit_code: int | None = None, finished_at: int = 0
    ) -> tuple[cri_pb2.ContainerStatus, ContainerExit] | None:
        """How an instance ended that an event says has; None where it is unknown.

        The runtime writes its own books a moment after the event, once all output is in
        the log, and says nothing when it has: it is asked again, with growing pauses
        (at most some 40 times, mostly once), for `_SETTLE` seconds. Should it never come, the
        event's own code and time have to do; raises Failure where it brought none.
        """
        deadline = time.monotonic() + _SETTLE
        pause = 0.004
        while True:
            status = await self.status(container_id)
            if status is None:
                return None
            if status.state == cri_pb2.CONTAINER_EXITED:
                return status, self.exit_of(status)
            if time.monotonic() > deadline:
                if exit_code is None:
                    raise Failure("ExitUnclear", "the runtime told an end that it does not show")
                status.exit_code, status.finished_at = exit_code, finished_at
                return status, self.exit_of(status)
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    def exit_of(self, status: cri_pb2.ContainerStatus) -> ContainerExit:
        """From the status of an ended instance and its termination message."""
        reason = status.reason
        if not reason:
            reason = "Completed" if status.exit_code == 0 else "Error"
        message = ": ".join(filter(None, (status.message, self._termination_message(status))))
        return ContainerExit(
            exit_code=status.exit_code,
            reason=reason,
            # A quick end is sometimes booked microseconds before its start.
            started_at=min(status.started_at, status.finished_at or status.started_at),
            finished_at=status.finished_at,
            message=message.encode()[:MAX_MESSAGE].decode(errors="ignore"),
        )

    def _termination_message(self, status: cri_pb2.ContainerStatus) -> str:
        ref = ref_of(status)
        text = ""
        if status.annotations.get(layout.TERMINATION_PATH):
            text = _read_some(self._paths.termination_file(ref.uid, ref.name, ref.attempt))
        fallback = status.annotations.get(layout.TERMINATION_FALLBACK) == "true"
        if not text and fallback and status.exit_code and status.reason != "ContainerCannotRun":
            log = self._paths.log_file(ref.uid, ref.name, ref.attempt)
            text = tail_text(log, _FALLBACK_LINES, _FALLBACK_BYTES)
        return text

    def forget(self, uid: str) -> None:
        """Nothing of a sandbox is left."""
        for key in [key for key in self._given_up if key[0] == uid]:
            del self._given_up[key]

    async def run(self) -> None:
        """For ever: what was given up must not come to life where no next instance is
        created, either."""
        while True:
            await self._any_given_up.wait()
            await asyncio.sleep(REMOVE_AGAIN)
            for uid, name in list(self._given_up):
                with contextlib.suppress(Failure):
                    await self._remove_given_up(uid, name)
                if not self._given_up.get((uid, name)):
                    self._given_up.pop((uid, name), None)
            if not self._given_up:
                self._any_given_up.clear()

    async def _remove_given_up(self, uid: str, name: str) -> None:
        left = self._given_up.get((uid, name), set())
        for ref in left.copy():
            try:
                await self.remove(ref)
            except RuntimeAway:
                raise
            except Failure as failure:
                raise Failure(
                    "CreateContainerError",
                    f"an earlier instance cannot be removed: {failure.message}",
                ) from None
            left.discard(ref)

    async def _make_way(self, config: cri_pb2.ContainerConfig) -> None:
        uid, name = config.labels[layout.POD_UID], config.labels[layout.CONTAINER_NAME]
        for item in await self.find({layout.POD_UID: uid, layout.CONTAINER_NAME: name}):
            if item.metadata.attempt == config.metadata.attempt:
                await self.remove(ref_of(item))


def ref_of(item: cri_pb2.Container | cri_pb2.ContainerStatus) -> ContainerRef:
    """Which instance this is."""
    return ContainerRef(
        uid=item.labels.get(layout.POD_UID, ""),
        name=item.labels.get(layout.CONTAINER_NAME, ""),
        attempt=item.metadata.attempt,
        id=item.id,
    )


def _read_some(path: Path) -> str:
    """The last bytes of a file that a container may have made anything of."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_MESSAGE))
            return file.read(MAX_MESSAGE).decode(errors="replace")
    except OSError:
        return ""
