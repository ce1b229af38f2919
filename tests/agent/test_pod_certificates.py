"""When a Pod's certificate is asked for, waited for, and asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.support.certificates import root_certificate
from vknode.agent import pod_certificates
from vknode.agent.pod_certificates import NOT_ISSUED, PodCertificates, RequestObject
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, Unreachable
from vknode.kube.models import ObjectKey
from vknode.translate.facts import CertificateNeed, Credential, Missing

NEED = CertificateNeed("v", 0, "example.com/s", "ED25519", None, (), "default", "web", "uid")
CHAIN = root_certificate("leaf")
NOW, HOUR_LATER = 1_000_000.0, "1970-01-12T14:46:40Z"


class Client(KubeClient):
    """Answers for a service account and for new requests; its watch never says anything."""

    def __init__(self) -> None:
        self.made = 0
        self.failures: list[Exception] = []
        self.before_answer: Callable[[str], None] = lambda name: None

    async def get(self, path: str, **_: Any) -> bytes:
        if "serviceaccounts" in path:
            return b'{"metadata":{"uid":"sa"}}'
        await asyncio.Event().wait()
        return b""

    async def create(self, path: str, body: bytes, **_: Any) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        self.made += 1
        name = f"req-{self.made}"
        self.before_answer(name)
        return msgspec.json.encode({"metadata": {"name": name}})


class World:
    def __init__(self) -> None:
        self.now = NOW
        self.client = Client()
        self.certificates = PodCertificates(
            self.client, lambda node: "node-uid", clock=lambda: self.now, patience=0.05
        )
        self.told: list[str] = []
        self.refusals: list[tuple[str, str, str]] = []
        self.certificates.on_changed(self.told.append)
        self.certificates.on_warning(lambda *words: self.refusals.append(words))

    async def resolve(self) -> Credential | Missing:
        return await self.certificates.resolve("default", NEED, "n")

    async def asked(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.client.made < count or self.certificates._records["uid"][NEED].task:
                await asyncio.sleep(0.005)

    def show(self, name: str, pod: str = "uid", **status: Any) -> None:
        thing = {
            "metadata": {"namespace": "default", "name": name},
            "spec": {"podUID": pod},
            "status": status,
        }
        self.certificates.upsert(msgspec.convert(thing, RequestObject))

    def answer(
        self,
        name: str,
        kind: str = "Issued",
        refresh: str = "1970-01-12T14:46:40Z",
        end: str = "1970-01-12T18:46:40Z",
    ) -> None:
        self.show(
            name,
            conditions=[{"type": kind, "reason": "R", "message": "M"}],
            certificateChain=f"# a remark\n{CHAIN}",
            beginRefreshAt=refresh,
            notAfter=end,
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_certificates, "LAG_RETRIES", (0.001,))
    monkeypatch.setattr(pod_certificates, "SPREAD", 0.0)


async def test_one_request_serves_until_its_time_is_over() -> None:
    world = World()
    assert await world.resolve() == NOT_ISSUED
    await world.asked(1)
    world.answer("req-1")
    assert world.told == ["uid"]
    got = await world.resolve()
    assert isinstance(got, Credential)
    assert got.chain == CHAIN
    assert world.certificates.renewal_in("uid") == pytest.approx(3600.0)
    await world.resolve()
    assert world.client.made == 1
    await world.certificates.close()


async def test_while_it_is_renewed_the_old_one_serves() -> None:
    world = World()
    await world.resolve()
    await world.asked(1)
    world.answer("req-1", refresh="1970-01-12T14:00:00Z")
    due = world.certificates.renewal_in("uid")
    assert due is not None
    world.now += due
    old = await world.resolve()
    await world.asked(2)
    assert await world.resolve() == old
    assert world.certificates.renewal_in("uid") == pytest.approx(600.0)
    world.answer("req-2", refresh="1970-01-13T14:00:00Z")
    new = await world.resolve()
    assert isinstance(old, Credential)
    assert isinstance(new, Credential)
    assert new.key != old.key
    await world.certificates.close()


async def test_an_answer_that_comes_before_our_own_is_not_lost() -> None:
    world = World()
    world.client.before_answer = world.answer
    await world.resolve()
    await world.asked(1)
    assert isinstance(await world.resolve(), Credential)
    await world.certificates.close()


@pytest.mark.parametrize("kind", ["Denied", "Failed"])
async def test_a_refusal_is_for_good(kind: str) -> None:
    world = World()
    await world.resolve()
    await world.asked(1)
    world.answer("req-1", kind)
    answer = await world.resolve()
    assert answer == Missing(
        f'PodCertificateRequest was permanently {kind.lower()}: reason="R" message="M"',
        not_found=False,
    )
    ((uid, reason, message),) = world.refusals
    assert (uid, reason) == ("uid", kind)
    assert "default/req-1" in message
    world.now += 1e6
    await world.resolve()
    assert world.client.made == 1
    await world.certificates.close()


async def test_a_request_that_nobody_answers_is_made_again_in_the_end() -> None:
    world = World()
    await world.resolve()
    await world.asked(1)
    world.now += 599
    await world.resolve()
    assert world.client.made == 1
    world.now += 2
    await world.resolve()
    await world.asked(2)
    world.certificates.deleted(ObjectKey("default", "req-2", "x"), None)
    assert world.told == ["uid"]
    await world.resolve()
    await world.asked(3)
    await world.certificates.close()


@pytest.mark.parametrize("early", [True, False])
async def test_a_slow_signer_is_waited_for_while_its_request_is_there(early: bool) -> None:
    world = World()
    if early:
        world.client.before_answer = world.show
    await world.resolve()
    await world.asked(1)
    if not early:
        world.show("req-1")
    world.now += 100_000
    await world.resolve()
    assert world.client.made == 1
    world.answer("req-1", refresh="1970-01-20T00:00:00Z", end="1970-01-21T00:00:00Z")
    assert isinstance(await world.resolve(), Credential)
    await world.certificates.close()


async def test_a_late_renewal_and_an_end_are_told_once_each() -> None:
    world = World()
    await world.resolve()
    await world.asked(1)
    world.answer("req-1", refresh="1970-01-12T14:46:40Z", end="1970-01-12T15:46:40Z")
    told = []
    for _ in range(12):
        due = world.certificates.renewal_in("uid")
        assert due is not None
        world.now += due + 1
        assert isinstance(await world.resolve(), Credential)
        await world.asked(2)
        world.show("req-2")
        told += [(round(world.now - NOW, -2), reason) for _, reason, _ in world.refusals]
        world.refusals.clear()
    assert told == [(4200.0, "CertificateOverdueForRefresh"), (7200.0, "CertificateExpired")]
    await world.certificates.close()


async def test_many_answers_for_other_nodes_push_none_of_ours_out() -> None:
    world = World()

    def before(name: str) -> None:
        world.answer(name)
        for number in range(1000):
            world.show(f"other-{number}", pod="other", conditions=[{"type": "Issued"}])

    world.client.before_answer = before
    await world.resolve()
    await world.asked(1)
    assert isinstance(await world.resolve(), Credential)
    await world.certificates.close()


async def test_a_lagging_authorizer_and_an_absent_server() -> None:
    world = World()
    world.client.failures = [ApiError(403, "Forbidden", "no relationship found")]
    await world.resolve()
    await world.asked(1)
    world.certificates.forget("uid")
    world.client.failures = [Unreachable("away")]
    await world.resolve()
    due = world.certificates.renewal_in("uid")
    assert due is not None
    assert 20 <= due <= 40
    world.now += due
    await world.resolve()
    await world.asked(2)
    await world.certificates.close()
