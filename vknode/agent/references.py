"""Fetches what a Pod names: ConfigMaps, Secrets, service-account tokens, acting as its node.

Theory of operation. Every request impersonates `system:node:NAME`, so the Node authorizer and
NodeRestriction decide what the node of this very Pod may read; the agent itself needs no right
on Secrets. Both learn of a binding through watches of their own, so for some milliseconds after
it they answer 403 (or 404, for the Pod a token is bound to): such answers are asked again a few
times (`LAG_RETRIES`) before they count. A missing object of an optional reference counts at once.

All of a Pod's requests run side by side. Objects are not kept in order to save requests, with two
exceptions, both ConfigMaps and both kept per node, so that the authorizer has said yes to exactly
that node:

* `kube-root-ca.crt`, which every Pod mounts: the same text in a whole cluster, changed only when
  the cluster's CA is (with months of overlap). Kept for `ROOT_CA_TTL`; asked once at a time.
  While it is changing (`distrust_root_ca`) it is kept for `IMMUTABLE_TTL` only.
* what says `immutable: true`: kept for `IMMUTABLE_TTL`, in which it could at most be deleted.

Tokens are kept until they must be renewed (`tokens.py`). What says `immutable: true` is remembered
for the Pods that were given it, should it be deleted (`immutables.py`).

No value ever reaches a log or an exception's text: both carry names only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from vknode.agent.immutables import Immutables
from vknode.agent.reference_index import RefKey
from vknode.agent.tokens import Grant, Tokens, unix_time
from vknode.kube.errors import ApiError, Forbidden, KubeError
from vknode.translate.facts import (
    CertificateNeed,
    Credential,
    Missing,
    Resolved,
    TokenNeed,
    TrustNeed,
)
from vknode.translate.needs import Needs
from vknode.translate.trust import NO_API

LAG_RETRIES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3)
MISSING_RETRIES = (0.01, 0.03, 0.1)
ROOT_CA = "kube-root-ca.crt"
ROOT_CA_TTL = 300.0
IMMUTABLE_TTL = 15.0
MAX_KEPT = 2000
REQUEST_TIMEOUT = 10.0

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _TokenSpec(msgspec.Struct, rename="camel"):
    expiration_seconds: int | None = None


class _TokenStatus(msgspec.Struct, rename="camel"):
    token: str
    expiration_timestamp: str = ""


class _TokenAnswer(msgspec.Struct):
    status: _TokenStatus
    spec: _TokenSpec = msgspec.field(default_factory=_TokenSpec)


_decode_token = msgspec.json.Decoder(_TokenAnswer).decode


class ReadAsNode(Protocol):
    """The part of `KubeClient` that is used here."""

    async def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes: ...

    async def create(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes: ...


class References:
    """Fetches for one agent. `services` gives the Service objects a Pod's environment shows."""

    def __init__(
        self,
        client: ReadAsNode,
        services: Callable[[str], Sequence[dict[str, Any]]] = lambda namespace: (),
        *,
        tokens: Tokens | None = None,
        trust: Callable[[TrustNeed], Awaitable[str | Missing]] | None = None,
        certificates: Callable[[str, CertificateNeed, str], Awaitable[Credential | Missing]]
        | None = None,
        clock: Callable[[], float] = time.monotonic,
        lag_retries: Sequence[float] = LAG_RETRIES,
        missing_retries: Sequence[float] = MISSING_RETRIES,
    ) -> None:
        self._client = client
        self._services = services
        self.tokens = Tokens() if tokens is None else tokens
        self._immutables = Immutables()
        self._trust = trust
        self._certificates = certificates
        self._root_ca_changes_until = 0.0
        self._clock = clock
        self._lag_retries = lag_retries
        self._missing_retries = missing_retries
        self._kept: OrderedDict[tuple[str, str, str], tuple[float, dict[str, Any]]] = OrderedDict()
        self._asking: dict[tuple[str, str, str], asyncio.Task[dict[str, Any] | Missing]] = {}

    async def fetch(self, namespace: str, needs: Needs, node: str, uid: str = "") -> Resolved:
        """Everything in `needs` of the Pod `uid`, what is missing as `Missing`. Raises
        `KubeError` if the API server cannot answer: nothing is known then, and all must be
        asked again."""
        config_maps: dict[str, dict[str, Any] | Missing] = {}
        secrets: dict[str, dict[str, Any] | Missing] = {}
        tokens: dict[TokenNeed, str | Missing] = {}
        bundles: dict[TrustNeed, str | Missing] = {}
        credentials: dict[CertificateNeed, Credential | Missing] = {}
        jobs: list[Awaitable[None]] = []

        async def config_map(name: str, optional: bool) -> None:
            config_maps[name] = await self._config_map(namespace, name, node, optional)

        async def secret(name: str, optional: bool) -> None:
            secrets[name] = await self._object("secrets", namespace, name, node, optional)

        async def token(need: TokenNeed) -> None:
            tokens[need] = await self._token(namespace, need, node)

        async def trust(need: TrustNeed) -> None:
            answer = Missing(NO_API) if self._trust is None else await self._trust(need)
            bundles[need] = answer

        async def certificate(need: CertificateNeed) -> None:
            credentials[need] = (
                Missing("Pod certificates are not served", not_found=False)
                if self._certificates is None
                else await self._certificates(namespace, need, node)
            )

        for token_need in needs.tokens:
            held = self.tokens.fresh(token_need)
            if held is None:
                jobs.append(token(token_need))
            else:
                tokens[token_need] = held
        for name, reference in needs.config_maps.items():
            kept = self._lookup(node, namespace, name)
            if kept is not None:
                config_maps[name] = kept
            else:
                jobs.append(config_map(name, reference.optional))
        jobs += [secret(name, ref.optional) for name, ref in needs.secrets.items()]
        jobs += [trust(need) for need in needs.trust]
        jobs += [certificate(need) for need in needs.certificates]
        if len(jobs) == 1:
            await jobs[0]
        elif jobs:
            await _all(jobs)
        if uid:
            self._settle_immutables(uid, namespace, "configmaps", config_maps)
            self._settle_immutables(uid, namespace, "secrets", secrets)
        return Resolved(
            config_maps=config_maps,
            secrets=secrets,
            tokens=tokens,
            services=self._services(namespace) if needs.services else (),
            trust=bundles,
            certificates=credentials,
        )

    def forget(self, uid: str) -> None:
        """The Pod has ended."""
        self.tokens.forget(uid)
        self._immutables.forget(uid)

    def _settle_immutables(
        self, uid: str, namespace: str, resource: str, objects: dict[str, dict[str, Any] | Missing]
    ) -> None:
        for name, found in objects.items():
            key = RefKey(resource, namespace, name)
            objects[name] = self._immutables.settle(uid, key, found)

    def distrust_root_ca(self, seconds: float) -> None:
        """The root CA is changing in all namespaces, one after the other, within so many
        seconds: what is read meanwhile may be old."""
        self._root_ca_changes_until = self._clock() + seconds
        for key in [key for key in self._kept if key[2] == ROOT_CA]:
            del self._kept[key]

    async def runtime_handler(self, name: str, node: str) -> str | Missing:
        """The handler of a RuntimeClass; kept for `IMMUTABLE_TTL` (its handler cannot change,
        the object can only be deleted and made anew). Raises `KubeError`."""
        key = (node, "", name)
        kept = self._lookup(*key)
        if kept is None:
            path = f"/apis/node.k8s.io/v1/runtimeclasses/{quote(name, safe='')}"

            async def ask() -> bytes:
                return await self._client.get(
                    path, impersonate=node, timeout=REQUEST_TIMEOUT, retry=False
                )

            answer = await self._patiently(ask, ())
            if isinstance(answer, Missing):
                return answer
            kept = _decode(answer)
            self._keep(key, kept, IMMUTABLE_TTL)
        return str(kept.get("handler", ""))

    async def _config_map(
        self, namespace: str, name: str, node: str, optional: bool
    ) -> dict[str, Any] | Missing:
        key = (node, namespace, name)
        if name != ROOT_CA:
            found = await self._object("configmaps", namespace, name, node, optional)
            if isinstance(found, dict) and found.get("immutable") is True:
                self._keep(key, found, IMMUTABLE_TTL)
            return found
        task = self._asking.get(key)
        if task is None:
            # One request for a burst of Pods. It outlives a Pod's own cancellation, for the others.
            task = asyncio.create_task(self._object("configmaps", namespace, name, node, optional))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(task)

    def _answered(
        self, key: tuple[str, str, str], task: asyncio.Task[dict[str, Any] | Missing]
    ) -> None:
        del self._asking[key]
        # Looking at the exception also keeps asyncio from calling it lost when all who asked
        # were cancelled.
        if task.cancelled() or task.exception() is not None:
            return
        found = task.result()
        if isinstance(found, dict):
            changing = self._clock() < self._root_ca_changes_until
            self._keep(key, found, IMMUTABLE_TTL if changing else ROOT_CA_TTL)

    def _lookup(self, *key: str) -> dict[str, Any] | None:
        entry = self._kept.get(key)  # type: ignore[arg-type]  # three strings, as the callers give
        if entry is None:
            return None
        if entry[0] <= self._clock():
            del self._kept[key]  # type: ignore[arg-type]  # as above
            return None
        return entry[1]

    def _keep(self, key: tuple[str, str, str], found: dict[str, Any], ttl: float) -> None:
        self._kept[key] = (self._clock() + ttl, found)
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    async def _object(
        self, resource: str, namespace: str, name: str, node: str, optional: bool
    ) -> dict[str, Any] | Missing:
        path = f"/api/v1/namespaces/{namespace}/{resource}/{quote(name, safe='')}"

        async def ask() -> bytes:
            return await self._client.get(
                path, impersonate=node, timeout=REQUEST_TIMEOUT, retry=False
            )

        answer = await self._patiently(ask, () if optional else self._missing_retries)
        return answer if isinstance(answer, Missing) else _decode(answer)

    async def _token(self, namespace: str, need: TokenNeed, node: str) -> str | Missing:
        account = quote(need.service_account, safe="")
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = msgspec.json.encode(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [need.audience] if need.audience else [],
                    "expirationSeconds": need.expiration_seconds,
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": need.pod_name,
                        "uid": need.pod_uid,
                    },
                },
            }
        )

        async def ask() -> bytes:
            return await self._client.create(
                path, body, impersonate=node, timeout=REQUEST_TIMEOUT, retry=False
            )

        try:
            # 404 is also what a lagging admission says of the Pod.
            answer = await self._patiently(ask, self._lag_retries)
        except KubeError:
            held = self.tokens.fallback(need)
            if held is None:
                raise
            return held
        if isinstance(answer, Missing):
            return self.tokens.fallback(need) or answer
        granted = _decode_token(answer)
        life = float(granted.spec.expiration_seconds or need.expiration_seconds)
        expires = granted.status.expiration_timestamp
        end = unix_time(expires) if expires else self.tokens.now + life
        self.tokens.keep(need, Grant(granted.status.token, life, end))
        return granted.status.token

    async def _patiently(
        self, ask: Callable[[], Awaitable[bytes]], missing_retries: Sequence[float]
    ) -> bytes | Missing:
        """Asks until it is found, or 403 and 404 have lasted longer than a lagging watch."""
        refused = absent = 0
        while True:
            try:
                return await ask()
            except Forbidden as error:
                if refused >= len(self._lag_retries):
                    return Missing(error.message, not_found=False)
                delay = self._lag_retries[refused]
                refused += 1
            except ApiError as error:
                if not error.is_not_found:
                    if error.is_transient or error.status == 401:
                        raise
                    # The request itself is wrong (400, 422): only the Pod's author can mend it.
                    return Missing(error.message, not_found=False)
                if absent >= len(missing_retries):
                    return Missing(error.message)
                delay = missing_retries[absent]
                absent += 1
            await asyncio.sleep(delay)


async def _all(jobs: Sequence[Awaitable[None]]) -> None:
    """Runs them side by side; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
