"""The cluster's trust bundles, for projected volumes: one informer, begun by the first need.

Theory of operation. ClusterTrustBundles are cluster-wide and public (every service account may
read them), so one list and watch in the agent's own name serves all Pods. Which version of the API
there is, v1 or v1beta1, discovery tells; where there is neither, it is looked for again while
somebody needs it. Until the first list is there, needs wait `SYNC_SECONDS`, as on a kubelet;
once it is known that there will be none for now (a right is missing, say), nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import structlog

from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError
from vknode.kube.models import ObjectKey, ObjectMeta
from vknode.kube.reflector import Reflector, ReflectorOptions, ReflectorStats
from vknode.translate.facts import Missing, TrustNeed
from vknode.translate.trust import NO_API, NOT_SYNCED, Bundle, certificates, concerns, resolve

log = structlog.get_logger()

GROUP = "/apis/certificates.k8s.io"
RESOURCE = "clustertrustbundles"
VERSIONS = ("v1", "v1beta1")
SYNC_SECONDS = 10.0
# Seconds that it may take from reading them for a new sandbox until it is there.
START_SECONDS = 30.0


class _Spec(msgspec.Struct, rename="camel"):
    signer_name: str = ""
    trust_bundle: str = ""


class BundleObject(msgspec.Struct):
    metadata: ObjectMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decode_bundle = msgspec.json.Decoder(BundleObject).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class TrustBundles:
    """`resolve` for a Pod's spec, `use` and `drop` for its changes; `close` at the end."""

    def __init__(
        self,
        client: KubeClient,
        options: ReflectorOptions | None = None,
        *,
        sync_seconds: float = SYNC_SECONDS,
    ) -> None:
        self.watch_stats = ReflectorStats()
        self._client = client
        self._options = options
        self._sync_seconds = sync_seconds
        self._changed: Callable[[str], None] = lambda uid: None
        self._bundles: dict[str, Bundle] = {}
        self._users: dict[str, Sequence[TrustNeed]] = {}
        # Changes of the last `START_SECONDS`, as (time, bundle).
        self._recent: deque[tuple[float, Bundle]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._synced = False
        self._known = asyncio.Event()  # synced, or why not
        self._problem = NOT_SYNCED
        self._closed = False

    def on_changed(self, callback: Callable[[str], None]) -> None:
        """Who is told the UID of a Pod whose trust bundles may have changed."""
        self._changed = callback

    async def resolve(self, need: TrustNeed) -> str | Missing:
        """The content for one projection."""
        self._begin()
        if not self._synced:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sync_seconds):
                    await self._known.wait()
        if not self._synced:
            return Missing(self._problem, not_found=False)
        return resolve(need, self._bundles)

    def use(self, uid: str, needs: Sequence[TrustNeed]) -> None:
        """The Pod's sandbox was made from these; replaces what was said before. One that was not
        known is told what changed while it may have been on its way."""
        if needs:
            new = uid not in self._users
            self._users[uid] = needs
            self._begin()
            if new and any(concerns(need, one) for need in needs for one in self._changes()):
                self._changed(uid)
        else:
            self._users.pop(uid, None)

    def drop(self, uid: str) -> None:
        self._users.pop(uid, None)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- the informer ----------------------------------------------------------------------

    def _begin(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run(), name="trust-bundles")

    async def _run(self) -> None:
        backoff = Backoff(base=1.0, maximum=60.0)
        while True:
            try:
                version = await self._version()
                if version is not None:
                    log.info("trust_bundles_watched", version=version)
                    reflector: Reflector[BundleObject] = Reflector(
                        self._client,
                        f"{GROUP}/{version}/{RESOURCE}",
                        _decode_bundle,
                        self,
                        options=self._options,
                        stats=self.watch_stats,
                    )
                    await reflector.run()
                self._problem = NO_API
                self._known.set()
            except ApiError as error:
                self._problem = f"{NOT_SYNCED}: {error}"
                self._known.set()
            except KubeError as error:  # nobody answers: that may pass soon
                self._problem = f"{NOT_SYNCED}: {error}"
            log.warning("trust_bundles_not_watched", problem=self._problem)
            await asyncio.sleep(backoff.next())

    async def _version(self) -> str | None:
        """The newest version of the API that is served."""
        for version in VERSIONS:
            try:
                answer = _decode(await self._client.get(f"{GROUP}/{version}"))
            except ApiError as error:
                if not error.is_not_found:
                    raise
                continue
            if any(resource["name"] == RESOURCE for resource in answer.get("resources") or ()):
                return version
        return None

    # -- what it tells ---------------------------------------------------------------------

    def upsert(self, obj: BundleObject) -> None:
        meta = obj.metadata
        bundle = Bundle(
            meta.name,
            obj.spec.signer_name,
            meta.labels or {},
            certificates(obj.spec.trust_bundle),
        )
        before = self._bundles.get(meta.name)
        self._bundles[meta.name] = bundle
        if bundle != before:
            self._tell(bundle)

    def deleted(self, key: ObjectKey, last: BundleObject | None) -> None:
        bundle = self._bundles.pop(key.name, None)
        if bundle is not None:
            self._tell(bundle)

    def synced(self) -> None:
        self._synced = True
        self._known.set()

    def _changes(self) -> Iterator[Bundle]:
        """The recent ones."""
        since = asyncio.get_running_loop().time() - START_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return (bundle for _, bundle in self._recent)

    def _tell(self, bundle: Bundle) -> None:
        if self._synced:  # what is told before is no change
            self._changes()
            self._recent.append((asyncio.get_running_loop().time(), bundle))
        for uid, needs in list(self._users.items()):
            if any(concerns(need, bundle) for need in needs):
                self._changed(uid)
