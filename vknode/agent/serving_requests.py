"""Gets the kubelet API's certificate from the cluster, and a new one before it ends.

Theory of operation, after a kubelet with `serverTLSBootstrap` (client-go util/certificate, 1.37):

=========  ====================================================  ================================
state      meaning                                               leaves when
=========  ====================================================  ================================
none       no certificate: handshakes with the kubelet API fail  a Node is registered → asked
asked      a CertificateSigningRequest waits for somebody who    issued → held; denied, failed,
           approves it, and for the signer; what is held still   deleted, or `PATIENCE` over →
           serves                                                resting
held       the certificate serves                                70 to 90 % of its life → asked
resting    it is asked again after a back-off                    the back-off is over → asked
=========  ====================================================  ================================

Kubernetes approves no request of this signer by itself: an operator does
(`kubectl certificate approve`), or a controller that knows which addresses its nodes have.

The request is made and watched as the node in whose name it is, by impersonation: so the API server
writes `system:node:NAME` of the group `system:nodes` into it, as approvers expect, and the agent
needs no right of its own on requests.

The key lives in memory. With a folder, key and certificate are kept there (one file, its owner's
only), and a new agent goes on with them; without, each start of an agent asks anew.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from vknode.agent.serving_certificate import (
    LONGEST_NODE_NAME,
    RENEW_BETWEEN,
    SIGNER,
    USAGES,
    CertificateWish,
    ServingPair,
    UnusableCertificateError,
    make_wish,
    split,
    take,
)
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kube.errors import KubeError
from vknode.kube.models import decode_partial
from vknode.kube.object_watch import ObjectWatch, Target
from vknode.kube.reflector import ReflectorOptions

log = structlog.get_logger()

COLLECTION = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
# Seconds until a request that nobody answers is made anew, as a kubelet's.
PATIENCE = 900.0
# Clocks may be set: nobody sleeps through more of it at once.
LONGEST_SLEEP = 3600.0
FILE_NAME = "kubelet-server-current.pem"


class _Condition(msgspec.Struct):
    type: str
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None
    certificate: str = ""


class _Request(msgspec.Struct):
    status: _Status = msgspec.field(default_factory=_Status)


_decode = msgspec.json.Decoder(_Request).decode


class NotIssuedError(Exception):
    """There will be no certificate for this request; the text says why."""


class ServingRequests:
    """`run` in a task; `node_changed` when a Node came or went.

    nodes:   names of the registered Nodes
    address: of all of them
    use:     takes each new pair, at once if one is kept in `folder`
    """

    def __init__(
        self,
        client: KubeClient,
        nodes: Callable[[], Iterable[str]],
        address: str,
        use: Callable[[ServingPair], None],
        *,
        folder: Path | None = None,
        options: ReflectorOptions | None = None,
        clock: Callable[[], float] = time.time,
        share: Callable[[], float] = lambda: random.uniform(*RENEW_BETWEEN),
        patience: float = PATIENCE,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._address = address
        self._use = use
        self._folder = folder
        self._options = options
        self._clock = clock
        self._share = share
        self._patience = patience
        self._backoff = backoff or Backoff(base=5.0, maximum=600.0)
        self._changed = asyncio.Event()
        self.held: ServingPair | None = None

    def node_changed(self, _name: str) -> None:
        self._changed.set()

    async def run(self) -> NoReturn:
        """Ends only by cancellation: what the cluster does wrong is told and waited out."""
        pair = self._kept()
        while True:
            if pair is not None:
                if not self._taken(pair):
                    await asyncio.sleep(self._backoff.next())
                    continue
                self._backoff.reset()
                await self._sleep_until(pair.renew_at(self._share()))
            pair = await self._obtain()

    def _taken(self, pair: ServingPair) -> bool:
        """Whether it serves now. The server reads its other files too, which may be half
        written at this moment: that ends nothing, the one before serves on."""
        try:
            self._use(pair)
        except Exception as error:
            log.error("serving_certificate_not_used", reason=str(error))
            return False
        self.held = pair
        return True

    async def _obtain(self) -> ServingPair | None:
        """None: it is to be tried again now."""
        try:
            node = await self._a_node()
            wish = make_wish(node, self._address)
            name = await self._ask(node, wish)
            answer = await self._answer(node, name)
            pair = take(answer, wish.key, self._address, self._clock())
        except (KubeError, NotIssuedError, UnusableCertificateError) as error:
            delay = self._backoff.next()
            log.warning(
                "serving_certificate_not_issued",
                reason=str(error),
                retry_in=round(delay, 1),
                ends=None if self.held is None else _told(self.held.not_after),
            )
            await asyncio.sleep(delay)
            return None
        log.info("serving_certificate_issued", request=name, node=node, ends=_told(pair.not_after))
        self._keep(pair)
        return pair

    async def _a_node(self) -> str:
        """The first one by name, so that restarts ask in the same name."""
        while True:
            self._changed.clear()
            for name in sorted(self._nodes()):
                if len(name) <= LONGEST_NODE_NAME:
                    return name
            await self._changed.wait()

    async def _ask(self, node: str, wish: CertificateWish) -> str:
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-"},
            "spec": {
                "request": base64.b64encode(wish.request).decode(),
                "signerName": SIGNER,
                "usages": USAGES,
            },
        }
        made = await self._client.create(COLLECTION, msgspec.json.encode(body), impersonate=node)
        name = decode_partial(made).metadata.name
        log.info(
            "serving_certificate_requested",
            request=name,
            node=node,
            address=self._address,
            hint=f"the kubelet API waits for: kubectl certificate approve {name}",
        )
        return name

    async def _answer(self, node: str, name: str) -> bytes:
        """The certificate in PEM. Raises NotIssuedError."""
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        watch = ObjectWatch(
            self._client,
            lambda: Target(COLLECTION, name, node),
            _Observer(name, answered),
            self._options,
        )
        watching = asyncio.create_task(watch.run())
        watching.add_done_callback(lambda task: _pass_on(task, answered))
        try:
            async with asyncio.timeout(self._patience):
                return await answered
        except TimeoutError:
            raise NotIssuedError(
                f"nobody answered request {name} within {self._patience:g} s; approve requests "
                f"of the signer {SIGNER}, and let the controller manager sign them"
            ) from None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _sleep_until(self, moment: float) -> None:
        while True:
            left = moment - self._clock()
            if left <= 0:
                return
            await asyncio.sleep(min(left, LONGEST_SLEEP))

    # -- the folder ------------------------------------------------------------------------

    def _kept(self) -> ServingPair | None:
        if self._folder is None:
            return None
        file = self._folder / FILE_NAME
        try:
            certificate, key = split(file.read_bytes())
            pair = take(certificate, key, self._address, self._clock())
        except FileNotFoundError:
            return None
        except (OSError, UnusableCertificateError) as error:
            log.warning("serving_certificate_not_kept", file=str(file), reason=str(error))
            return None
        log.info("serving_certificate_found", file=str(file), ends=_told(pair.not_after))
        return pair

    def _keep(self, pair: ServingPair) -> None:
        """Written beside and moved, so that there is always a whole one."""
        if self._folder is None:
            return
        file = self._folder / FILE_NAME
        new = self._folder / f".{FILE_NAME}.{os.getpid()}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(pair.pem)
            new.replace(file)
        except OSError as error:
            why = error.strerror or type(error).__name__
            log.warning("serving_certificate_not_written", file=str(file), reason=why)


class _Observer:
    def __init__(self, name: str, answered: asyncio.Future[bytes]) -> None:
        self._name = name
        self._answered = answered
        self._seen = False

    def present(self, _resource_version: str, raw: msgspec.Raw) -> None:
        self._seen = True
        if self._answered.done():
            return
        status = _decode(raw).status
        for condition in status.conditions or ():
            if condition.type in ("Denied", "Failed"):
                why = ": ".join(filter(None, (condition.reason, condition.message)))
                self._fail(
                    f"request {self._name} was {condition.type.lower()}: {why or 'no reason'}"
                )
                return
        if status.certificate:
            try:
                self._answered.set_result(base64.b64decode(status.certificate, validate=True))
            except ValueError:
                self._fail(f"the certificate of request {self._name} is not base64")

    def absent(self, _resource_version: str, _last: msgspec.Raw | None) -> None:
        # The first state may be from the moment before it was made.
        if self._seen:
            self._fail(f"request {self._name} is gone")

    def _fail(self, why: str) -> None:
        if not self._answered.done():
            self._answered.set_exception(NotIssuedError(why))


def _pass_on(watching: asyncio.Task[None], answered: asyncio.Future[bytes]) -> None:
    """A watch that ends by itself has a defect."""
    if watching.cancelled() or answered.done():
        return
    answered.set_exception(watching.exception() or RuntimeError("a watch ended by itself"))


def _told(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
