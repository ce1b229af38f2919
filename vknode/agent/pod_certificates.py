"""Keys and certificates of Pods (podCertificate projections): asked for, waited for, renewed.

Theory of operation, after pkg/kubelet/podcertificate of 1.37. For each projection the agent makes
a private key and a PodCertificateRequest, acting as the Pod's node; some signer in the cluster
answers in the request's status. One informer, begun by the first need, tells of all answers (a
request holds nothing secret). Keys live in memory only: a new agent asks for new certificates.

========  ====================================================  ============================
state     meaning                                               leaves when
========  ====================================================  ============================
none      nobody has asked yet                                  `resolve` → asked
asked     the request exists; what was issued before, if        issued → fresh; denied,
          anything, still serves                                failed → refused; request
                                                                gone, or not seen by the
                                                                informer for `ABANDON` → none
fresh     the certificate serves                                its beginRefreshAt (and up to
                                                                `SPREAD` later) → asked
refused   for good: denied or failed                            -
========  ====================================================  ============================

A request that the informer shows is waited for, however long the signer takes. Renewals that
are late, and certificates that are over, are told once each.

No key reaches a log or an exception's text.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from vknode.agent.references import LAG_RETRIES
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError
from vknode.kube.models import ObjectKey, ObjectMeta, decode_partial
from vknode.kube.reflector import Reflector, ReflectorOptions, ReflectorStats
from vknode.translate.facts import CertificateNeed, Credential, Missing
from vknode.translate.trust import chain

log = structlog.get_logger()

API = "/apis/certificates.k8s.io/v1"
RESOURCE = "podcertificaterequests"
# How long a Pod's worker waits for a signer before the volume counts as not ready.
PATIENCE = 2.0
ABANDON = 600.0
SPREAD = 300.0
# After the moment of a renewal until it counts as late.
OVERDUE = 600.0
RETRY = (20.0, 40.0)
MAX_EARLY = 200
REQUEST_TIMEOUT = 10.0
NOT_ISSUED = Missing("credential bundle is not issued yet", not_found=False)

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_KEYS: dict[str, Callable[[], PrivateKey]] = {
    "RSA3072": lambda: rsa.generate_private_key(65537, 3072),
    "RSA4096": lambda: rsa.generate_private_key(65537, 4096),
    "ECDSAP256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECDSAP384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ECDSAP521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ED25519": ed25519.Ed25519PrivateKey.generate,
}


class _Condition(msgspec.Struct):
    type: str
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct, rename="camel"):
    conditions: list[_Condition] | None = None
    certificate_chain: str = ""
    begin_refresh_at: str | None = None
    not_after: str | None = None


class _Spec(msgspec.Struct):
    pod_uid: str = msgspec.field(name="podUID", default="")


class RequestObject(msgspec.Struct):
    metadata: ObjectMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


_decode = msgspec.json.Decoder(RequestObject).decode


@dataclass(slots=True)
class _Asked:
    """A request that is not answered yet."""

    name: str
    key: str = field(repr=False)
    since: float
    seen: bool = False


@dataclass(slots=True)
class _Served:
    """What was issued last. Times in seconds since the Unix epoch."""

    credential: Credential
    refresh_at: float
    # Events that were not told yet: when, reason, message.
    late: list[tuple[float, str, str]]


@dataclass(slots=True)
class _Record:
    need: CertificateNeed
    namespace: str
    served: _Served | None = None
    asked: _Asked | None = None
    refusal: str = ""
    task: asyncio.Task[None] | None = None
    retry_at: float = 0.0
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class PodCertificates:
    """`resolve` for a Pod's spec, `forget` when it has ended; `close` at the end."""

    def __init__(
        self,
        client: KubeClient,
        node_uid: Callable[[str], str | None],
        options: ReflectorOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        patience: float = PATIENCE,
    ) -> None:
        """`node_uid` tells the UID of a Node of ours."""
        self.watch_stats = ReflectorStats()
        self._client = client
        self._node_uid = node_uid
        self._options = options
        self._clock = clock
        self._patience = patience
        self._changed: Callable[[str], None] = lambda uid: None
        self._warn: Callable[[str, str, str], None] = lambda uid, reason, message: None
        self._records: dict[str, dict[CertificateNeed, _Record]] = {}
        # (namespace, name) of each request that waits for its answer
        self._waiting: dict[tuple[str, str], _Record] = {}
        # Requests of our Pods that nobody here waits for (yet), the newest last.
        self._early: OrderedDict[tuple[str, str], RequestObject] = OrderedDict()
        self._informer: asyncio.Task[None] | None = None
        self._closed = False

    def on_changed(self, callback: Callable[[str], None]) -> None:
        """Who is told the UID of a Pod whose certificate came, or will not."""
        self._changed = callback

    def on_warning(self, callback: Callable[[str, str, str], None]) -> None:
        """Who is told of what went wrong: UID, reason and message of an event."""
        self._warn = callback

    async def resolve(
        self, namespace: str, need: CertificateNeed, node: str
    ) -> Credential | Missing:
        """The key and certificate for one projection; waits a little for a new one."""
        self._begin()
        of_pod = self._records.setdefault(need.pod_uid, {})
        record = of_pod.get(need)
        if record is None:
            record = of_pod[need] = _Record(need, namespace)
        self._tell_if_late(record)
        self._ask_if_due(record, node)
        if record.served is None:
            try:
                async with asyncio.timeout(self._patience):
                    await record.answered.wait()
            except TimeoutError:
                pass
        return _result(record)

    def renewal_in(self, uid: str) -> float | None:
        """Seconds until the Pod must be looked at again for its certificates; None: never."""
        records = self._records.get(uid)
        if not records:
            return None
        return min((self._due(record) for record in records.values()), default=None)

    def forget(self, uid: str) -> None:
        for record in self._records.pop(uid, {}).values():
            if record.task is not None:
                record.task.cancel()
            if record.asked is not None:
                self._waiting.pop((record.namespace, record.asked.name), None)

    async def close(self) -> None:
        self._closed = True
        tasks = [one.task for of_pod in self._records.values() for one in of_pod.values()]
        running = [task for task in (*tasks, self._informer) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # -- asking ----------------------------------------------------------------------------

    def _due(self, record: _Record) -> float:
        now = self._clock()
        if record.refusal:
            return ABANDON
        served = record.served
        if record.asked is not None:
            due = now if record.asked.seen else record.asked.since
            due += ABANDON
        elif record.task is not None:
            due = now + RETRY[0]
        else:
            due = max(record.retry_at, 0.0 if served is None else served.refresh_at)
        if served is not None and served.late:
            due = min(due, served.late[0][0])
        return max(0.0, due - now)

    def _tell_if_late(self, record: _Record) -> None:
        late = [] if record.served is None or record.refusal else record.served.late
        while late and self._clock() > late[0][0]:
            _, reason, message = late.pop(0)
            self._warn(record.need.pod_uid, reason, message)

    def _ask_if_due(self, record: _Record, node: str) -> None:
        now = self._clock()
        asked = record.asked
        if asked is not None and not asked.seen and now - asked.since >= ABANDON:
            self._abandon(record)
        if record.refusal or record.asked is not None or record.task is not None:
            return
        if now < record.retry_at:
            return
        if record.served is None or now >= record.served.refresh_at:
            record.task = asyncio.create_task(self._ask(record, node), name="pod-certificate")

    def _abandon(self, record: _Record) -> None:
        """It is answered, or somebody deleted the request."""
        if record.asked is not None:
            self._waiting.pop((record.namespace, record.asked.name), None)
            record.asked = None

    async def _ask(self, record: _Record, node: str) -> None:
        need = record.need
        try:
            # RSA keys take a good part of a second.
            key, request = await asyncio.to_thread(make_key, need.key_type)
            name = await self._create_patiently(record, node, request)
            record.asked = _Asked(name, key, self._clock())
            self._waiting[(record.namespace, name)] = record
            log.info("pod_certificate_asked", pod=need.pod_name, signer=need.signer, request=name)
            early = self._early.pop((record.namespace, name), None)
            if early is not None:
                self.upsert(early)
        except (KubeError, ValueError, msgspec.DecodeError) as error:
            low, high = RETRY
            record.retry_at = self._clock() + random.uniform(low, high)
            log.warning("pod_certificate_not_asked", uid=need.pod_uid, error=str(error))
        finally:
            record.task = None

    async def _create_patiently(self, record: _Record, node: str, request: bytes) -> str:
        """The authorizer and the admission learn of a binding through watches of their own."""
        for delay in LAG_RETRIES:
            try:
                return await self._create(record, node, request)
            except ApiError as error:
                if error.status not in (403, 404):
                    raise
            await asyncio.sleep(delay)
        return await self._create(record, node, request)

    async def _create(self, record: _Record, node: str, request: bytes) -> str:
        need = record.need
        account = quote(need.service_account, safe="")
        path = f"/api/v1/namespaces/{record.namespace}/serviceaccounts/{account}"
        found = await self._client.get(path, impersonate=node, timeout=REQUEST_TIMEOUT)
        node_uid = self._node_uid(node)
        if node_uid is None:
            raise ValueError(f"node {node} is not registered")
        spec: dict[str, Any] = {
            "signerName": need.signer,
            "podName": need.pod_name,
            "podUID": need.pod_uid,
            "serviceAccountName": need.service_account,
            "serviceAccountUID": decode_partial(found).metadata.uid,
            "nodeName": node,
            "nodeUID": node_uid,
            "stubPKCS10Request": base64.b64encode(request).decode(),
        }
        if need.max_expiration_seconds is not None:
            spec["maxExpirationSeconds"] = need.max_expiration_seconds
        if need.annotations:
            spec["unverifiedUserAnnotations"] = dict(need.annotations)
        owner = {"apiVersion": "v1", "kind": "Pod", "name": need.pod_name, "uid": need.pod_uid}
        body = {"metadata": {"generateName": "req-", "ownerReferences": [owner]}, "spec": spec}
        answer = await self._client.create(
            f"{API}/namespaces/{record.namespace}/{RESOURCE}",
            msgspec.json.encode(body),
            impersonate=node,
            timeout=REQUEST_TIMEOUT,
            retry=False,
        )
        return decode_partial(answer).metadata.name

    # -- the informer ----------------------------------------------------------------------

    def _begin(self) -> None:
        if self._informer is None and not self._closed:
            self._informer = asyncio.create_task(self._run(), name="pod-certificates")

    async def _run(self) -> None:
        backoff = Backoff(base=1.0, maximum=60.0)
        while True:
            # A new one knows nothing of what the last one saw, nor of what went meanwhile.
            for record in self._waiting.values():
                if record.asked is not None and record.asked.seen:
                    record.asked.seen, record.asked.since = False, self._clock()
            reflector: Reflector[RequestObject] = Reflector(
                self._client,
                f"{API}/{RESOURCE}",
                _decode,
                self,
                options=self._options,
                stats=self.watch_stats,
            )
            try:
                await reflector.run()
            except (ApiError, KubeError) as error:
                log.warning("pod_certificates_not_watched", error=str(error))
            await asyncio.sleep(backoff.next())

    def upsert(self, obj: RequestObject) -> None:
        meta = obj.metadata
        record = self._waiting.get((meta.namespace, meta.name))
        if record is None or record.asked is None:
            if obj.spec.pod_uid in self._records:
                # The answer to our own request has not been read yet.
                self._early[(meta.namespace, meta.name)] = obj
                self._early.move_to_end((meta.namespace, meta.name))
                if len(self._early) > MAX_EARLY:
                    self._early.popitem(last=False)
            return
        record.asked.seen = True
        for condition in obj.status.conditions or ():
            if condition.type == "Issued" and obj.status.begin_refresh_at:
                record.served = _served(record.asked.key, obj.status)
            elif condition.type in ("Denied", "Failed"):
                self._refuse(record, meta, condition)
            else:
                continue
            self._abandon(record)
            record.answered.set()
            self._changed(record.need.pod_uid)
            return

    def _refuse(self, record: _Record, meta: ObjectMeta, condition: _Condition) -> None:
        word = condition.type.lower()
        why = f'reason="{condition.reason}" message="{condition.message}"'
        record.refusal = f"PodCertificateRequest was permanently {word}: {why}"
        verb = "was denied" if condition.type == "Denied" else "failed"
        message = (
            f"PodCertificateRequest {meta.namespace}/{meta.name} {verb}, "
            f'reason="{condition.reason}", message="{condition.message}"'
        )
        self._warn(record.need.pod_uid, condition.type, message)

    def deleted(self, key: ObjectKey, last: RequestObject | None) -> None:
        self._early.pop((key.namespace, key.name), None)
        record = self._waiting.get((key.namespace, key.name))
        if record is not None:
            self._abandon(record)
            self._changed(record.need.pod_uid)

    def synced(self) -> None:
        pass


def _result(record: _Record) -> Credential | Missing:
    if record.refusal:
        return Missing(record.refusal, not_found=False)
    return NOT_ISSUED if record.served is None else record.served.credential


def _served(key: str, status: _Status) -> _Served:
    assert status.begin_refresh_at is not None
    refresh_at = _seconds(status.begin_refresh_at) + random.uniform(0.0, SPREAD)
    not_after = _seconds(status.not_after) if status.not_after else math.inf
    late = [
        (refresh_at + OVERDUE, "CertificateOverdueForRefresh", "PodCertificate refresh overdue"),
        (not_after, "CertificateExpired", "PodCertificate expired"),
    ]
    credential = Credential(key, chain(status.certificate_chain))
    return _Served(credential, refresh_at, sorted(late))


def _seconds(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


def make_key(key_type: str) -> tuple[str, bytes]:
    """A new private key (PKCS#8 PEM) and a certificate request that proves it (DER).

    Raises ValueError for an unknown type."""
    make = _KEYS.get(key_type)
    if make is None:
        raise ValueError(f"unknown key type {key_type!r}")
    key = make()
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return text, request.public_bytes(serialization.Encoding.DER)
