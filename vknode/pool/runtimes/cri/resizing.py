"""Resources of a running container, and with them its Pod's: raised from the outside in,
lowered from the inside out, as a kubelet does it (doPodResizeAction).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from vknode.pool.probes import gowords
from vknode.pool.runtimes.cri.client import CriClient, NotFound
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.podcgroup import PodCgroups
from vknode.pool.runtimes.cri.resources import PodLimits, pod_limits, resized
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import ContainerRef, Failure
from vknode.pool.v1 import spec_pb2

log = structlog.get_logger()

_CALL = 120.0
_REASON = "ResizeFailed"


@contextlib.contextmanager
def _telling(reason: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return  # the Pod is gone, or has no group of its own
    except OSError as error:
        raise Failure(reason, f"cannot set the Pod's limits: {error.strerror}") from None


def _pod_uses_too_much(
    spec: spec_pb2.SandboxSpec, limits: PodLimits, cgroups: PodCgroups | None
) -> list[str]:
    if cgroups is None or limits.memory is None:
        return []
    usage, limit = cgroups.memory(spec.uid)
    if limits.memory >= limit or usage < limits.memory:
        return []
    return [f"attempting to set pod memory limit ({limits.memory}) below current usage ({usage})"]


def _refuse(problems: list[str]) -> None:
    if problems:
        text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        raise Failure(_REASON, f"cannot decrease memory limits: {text}")


class Resizer:
    def __init__(self, client: CriClient, known: Known) -> None:
        self._client = client
        self._known = known

    async def resize(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        ref: ContainerRef,
        memory_capacity: int,
        cgroups: PodCgroups | None,
    ) -> None:
        """As `Runtime.resize_container`."""
        resources = resized(spec, container, memory_capacity)
        limits = pod_limits(spec)
        problems = await self._too_much_used(ref, resources.memory_limit_in_bytes)
        with _telling(_REASON):
            problems = _pod_uses_too_much(spec, limits, cgroups) + problems
        _refuse(problems)
        if cgroups is not None:
            with _telling(_REASON):
                cgroups.raise_limits(ref.uid, limits)
        request = cri_pb2.UpdateContainerResourcesRequest(container_id=ref.id, linux=resources)
        with contextlib.suppress(NotFound):
            await self._client.call(
                _REASON, self._client.runtime.UpdateContainerResources(request, timeout=_CALL)
            )
        self._known.memory_limits[ref.id] = resources.memory_limit_in_bytes
        if cgroups is not None:
            with _telling(_REASON):
                cgroups.settle(ref.uid, limits)

    def resize_pod(self, spec: spec_pb2.SandboxSpec, cgroups: PodCgroups | None) -> None:
        """As `Runtime.resize_sandbox`. A limit that a container's own still exceeds is
        lowered with that."""
        if cgroups is None:
            return
        limits = pod_limits(spec)
        with _telling(_REASON):
            _refuse(_pod_uses_too_much(spec, limits, cgroups))
            cgroups.raise_limits(spec.uid, limits)
            cgroups.settle(spec.uid, limits)

    def make_room(self, spec: spec_pb2.SandboxSpec, cgroups: PodCgroups | None) -> None:
        """Before a container starts: the Pod's limits that have grown since its cgroup was
        made; a container may not have more than its Pod. Raises Failure."""
        if cgroups is not None:
            with _telling("CreateContainerError"):
                cgroups.raise_limits(spec.uid, pod_limits(spec))

    def settle(self, spec: spec_pb2.SandboxSpec, cgroups: PodCgroups | None) -> None:
        """After it has started: those that have shrunk, too. It runs whatever comes of that."""
        if cgroups is not None:
            try:
                cgroups.settle(spec.uid, pod_limits(spec))
            except OSError as error:
                log.warning("pod_limits_not_lowered", uid=spec.uid, error=error.strerror)

    async def _too_much_used(self, ref: ContainerRef, limit: int) -> list[str]:
        """Why memory cannot be limited so. The limit before is not known of containers that
        an earlier process started; but where more than the new one is used, it was higher."""
        before = self._known.memory_limits.get(ref.id)
        if limit <= 0 or (before is not None and 0 < before <= limit):
            return []
        least = limit if before is not None else limit + 1
        request = cri_pb2.ListContainerStatsRequest(filter=cri_pb2.ContainerStatsFilter(id=ref.id))
        answer = await self._client.call(
            _REASON, self._client.runtime.ListContainerStats(request, timeout=_CALL)
        )
        for item in answer.stats:
            if item.memory.HasField("usage_bytes") and item.memory.usage_bytes.value >= least:
                return [
                    f"attempting to set container {gowords.quote(ref.name)} memory limit "
                    f"({limit}) below current usage ({item.memory.usage_bytes.value})"
                ]
        return []
