"""Tells when the cluster's root CA, which nearly every Pod mounts, has changed.

kube-controller-manager writes the ConfigMap `kube-root-ca.crt` into every namespace and keeps all
of them the same. One watch a namespace would be the most watches for the least news, so one of
them is watched for all: any living Pod's, as its node. When its content changes, so do the others
within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec
import structlog

from vknode.agent.pod_store import PodObject
from vknode.agent.references import ROOT_CA
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.object_watch import ObjectWatch, Target
from vknode.kube.reflector import ReflectorOptions, ReflectorStats

log = structlog.get_logger()

# The first starts come first; and after it went, with its namespace, another one is looked for.
SETTLE = 2.0

_MENTION = ROOT_CA.encode()


class _Data(msgspec.Struct):
    data: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Data).decode


def mentions_root_ca(pod: PodObject) -> bool:
    """Whether it may mount it (it may say so of a Pod that only mentions it)."""
    return _MENTION in pod.raw


class RootCa:
    """`used` whenever a Pod mounts it; `close` at the end."""

    def __init__(
        self,
        client: KubeClient,
        pods: Callable[[], Iterable[PodObject]],
        changed: Callable[[], None],
        options: ReflectorOptions | None = None,
    ) -> None:
        """`pods` are those that live on our nodes."""
        self.watch_stats = ReflectorStats()
        self._client = client
        self._pods = pods
        self._changed = changed
        self._options = options or ReflectorOptions(make_backoff=lambda: Backoff(base=1.0))
        self._content: dict[str, str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def seen(self) -> bool:
        return self._content is not None

    def used(self) -> None:
        if self._task is None and self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self._begin)

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _aim(self) -> Target | None:
        for pod in self._pods():
            if mentions_root_ca(pod):
                path = f"/api/v1/namespaces/{pod.namespace}/configmaps"
                return Target(path, ROOT_CA, pod.node)
        return None  # the next Pod that mounts it begins anew

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None:
            self._task.cancel()
        watch = ObjectWatch(self._client, self._aim, self, self._options, self.watch_stats)
        self._task = asyncio.get_running_loop().create_task(watch.run(), name="watch-root-ca")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("root_ca_watch_failed", exc_info=error)

    # -- what the watch tells --------------------------------------------------------------

    def present(self, resource_version: str, raw: msgspec.Raw) -> None:
        content = _decode(raw).data
        before, self._content = self._content, content
        if before is not None and before != content:
            log.info("root_ca_changed")
            self._changed()

    def absent(self, resource_version: str, last: msgspec.Raw | None) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self._begin)
