"""When sandboxes are looked at again: spread over time where many are due, and never for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from tests.agent.pods import pod
from tests.kube.scripted import ScriptedServer, event, plain_connection, watch
from vknode.agent import refresh, root_ca
from vknode.agent.pod_store import PodObject
from vknode.agent.reference_index import RefKey, Uses
from vknode.agent.references import References
from vknode.agent.refresh import Refresher
from vknode.agent.tokens import Grant, Tokens
from vknode.agent.trust_bundles import BundleObject
from vknode.kube.client import KubeClient
from vknode.translate.facts import TokenNeed, TrustNeed

TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
CA = {"configMap": {"name": "kube-root-ca.crt"}}


def access(*sources: dict[str, Any]) -> dict[str, Any]:
    return {"volumes": [{"name": "t", "projected": {"sources": list(sources)}}]}


#: What the clock shows first.
BEGUN = 1000.0


@dataclass
class Timer:
    at: float
    callback: Callable[[], None] | None

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.callback = None


class Clock:
    """A loop's clock that stands still until it is put forward: no test depends on how quick the
    machine is."""

    def __init__(self) -> None:
        self.now = BEGUN
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        self._timers.append(timer)
        return timer

    def forward(self, seconds: float) -> None:
        """All that is due meanwhile is called, each at its time."""
        end = self.now + seconds
        while due := [one for one in self._timers if one.callback and one.at <= end]:
            first = min(due, key=Timer.when)
            self.now = max(self.now, first.at)
            callback, first.callback = first.callback, None
            if callback is not None:
                callback()
        self.now = end


class World:
    def __init__(self, server: ScriptedServer) -> None:
        self.connection = plain_connection(server.url)
        client = KubeClient(self.connection)
        self.clock = Clock()
        tokens = Tokens(clock=self.clock.time, rand=lambda: 0.0)
        self.references = References(client, tokens=tokens)
        self.pods: list[PodObject] = []
        self.refresher = Refresher(client, self.references, self._living, limit=10)
        self.refresher._loop = cast("asyncio.AbstractEventLoop", self.clock)
        # Who was told, and how many seconds after the beginning.
        self.told: list[tuple[str, float]] = []
        self.refresher.on_stale(
            lambda uid: self.told.append((uid, round(self.clock.now - BEGUN, 3)))
        )

    def _living(self) -> Iterator[PodObject]:
        return iter(self.pods)

    def due(self) -> int:
        """How many are due later."""
        return len(self.refresher._due)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def refreshing(*script: Any) -> AsyncIterator[tuple[World, ScriptedServer]]:
    async with ScriptedServer(list(script)) as server:
        world = World(server)
        task = asyncio.create_task(world.refresher.run())
        try:
            yield world, server
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await world.connection.close()


def ca(text: str, revision: int) -> bytes:
    meta = {"name": "kube-root-ca.crt", "namespace": "default", "resourceVersion": str(revision)}
    return event("MODIFIED", {"metadata": meta, "data": {"ca.crt": text}})


async def test_adopted_sandboxes_are_looked_at_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "ADOPTED_AFTER", 0.1)
    monkeypatch.setattr(refresh, "PACE", 50.0)
    spec = {"volumes": [{"name": "c", "configMap": {"name": "c"}}]}
    async with refreshing() as (world, _):
        for number in range(20):
            world.refresher.adopted(pod(f"u{number}", name=f"p{number}", spec=spec))
        world.refresher.adopted(pod("plain"))
        world.refresher.forget("u0")
        world.clock.forward(10.0)
        assert [uid for uid, _ in world.told] == [f"u{number}" for number in range(1, 20)]
        for number, (_, when) in enumerate(world.told, start=1):
            assert when == round(0.1 + number / 50, 3)


async def test_an_old_pods_token_may_be_due_and_a_young_ones_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "ADOPTED_AFTER", 0.0)
    async with refreshing() as (world, _):
        old = pod("old", spec=access(TOKEN))  # of January
        young = pod("young", spec=access(TOKEN))
        monkeypatch.setattr(refresh, "_age", lambda one: 10.0 if one is young else 1e6)
        world.refresher.adopted(young)
        world.refresher.adopted(old)
        world.clock.forward(1.0)
        assert [uid for uid, _ in world.told] == ["old"]
        when = world.refresher._due.when("young")
        assert when is not None
        assert 2800 < when - world.clock.now < 2880


async def test_an_adopted_token_is_reckoned_by_what_the_api_server_grants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may cut long lives to an hour; and a shorter limit shows with the first grant."""
    day = {"serviceAccountToken": {"path": "token", "expirationSeconds": 86400}}
    async with refreshing() as (world, _):
        monkeypatch.setattr(refresh, "_age", lambda one: 600.0)
        for uid in ("long", "longer"):
            world.refresher.adopted(pod(uid, spec=access(day)))
        world.refresher.adopted(pod("hour", spec=access(TOKEN)))
        when = world.refresher._due.when("long")
        assert when is not None
        assert 2200 < when - world.clock.now < 2280
        tokens = world.references.tokens
        need = TokenNeed("default", "", 86400, "web", "new")
        tokens.keep(need, Grant("t", 900.0, tokens.now + 900.0))
        world.refresher.sent("new", "cell-1", Uses(), in_want=False)
        world.clock.forward(1.0)
        assert {uid for uid, _ in world.told} == {"long", "longer"}
        # From now on it is known.
        monkeypatch.setattr(refresh, "_age", lambda one: 100.0)
        world.refresher.adopted(pod("later", spec=access(day)))
        when = world.refresher._due.when("later")
        assert when is not None
        assert 600 < when - world.clock.now < 620


async def test_one_root_ca_is_watched_for_all_and_its_change_is_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(root_ca, "SETTLE", 0.0)
    monkeypatch.setattr(refresh, "ROOT_CA_SPREAD", 0.1)
    monkeypatch.setattr(refresh, "PACE", 50.0)
    script = watch(ca("A", 5), ca("A", 6), ca("B", 7), hold=60.0)
    async with refreshing(script) as (world, server):
        world.pods = [pod(f"u{n}", namespace=f"ns{n}", spec=access(CA)) for n in range(10)]
        world.pods.append(pod("without", spec=access(TOKEN)))
        for one in world.pods[:10]:
            uses = Uses(root_ca=True)
            world.refresher.sent(one.uid, one.node, uses, in_want=False)
        await world.until(lambda: world.due() == 10)
        world.clock.forward(10.0)
        assert len(server.seen) == 1
        assert server.seen[0].path == "/api/v1/namespaces/ns0/configmaps"
        assert {uid for uid, _ in world.told} == {f"u{n}" for n in range(10)}
        for number, (_, when) in enumerate(world.told):
            assert when == round(0.1 + number / 50, 3)


async def test_a_namespace_that_goes_takes_the_root_cas_watch_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(root_ca, "SETTLE", 0.05)
    monkeypatch.setattr(refresh, "ROOT_CA_SPREAD", 0.0)
    gone = event("DELETED", {"metadata": {"name": "kube-root-ca.crt", "resourceVersion": "9"}})
    script = [watch(ca("A", 5), gone, hold=60.0), watch(ca("A", 3), ca("B", 12), hold=60.0)]
    async with refreshing(*script) as (world, server):
        world.pods = [pod("u", namespace="first", spec=access(CA))]
        world.refresher.sent("u", "cell-1", Uses(root_ca=True), in_want=False)
        await server.until_seen(1)
        world.pods = [pod("v", namespace="second", spec=access(CA))]
        await world.until(lambda: world.due() == 1)
        world.clock.forward(1.0)
        assert [uid for uid, _ in world.told] == ["v"]
        assert server.seen[1].path == "/api/v1/namespaces/second/configmaps"


async def test_a_change_while_a_pod_is_being_looked_at_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is sent then was read before."""
    monkeypatch.setattr(refresh, "PACE", 5.0)
    uses = Uses(trust=(TrustNeed("root", "", None, False),))
    async with refreshing() as (world, _):
        for uid in ("u0", "u1"):
            world.refresher.sent(uid, "cell-1", uses, in_want=False)
        bundle = {"metadata": {"name": "root", "uid": "b", "resourceVersion": "5"}}
        world.refresher._trust.upsert(msgspec.convert(bundle, BundleObject))
        for uid in ("u0", "u1"):
            world.refresher.sent(uid, "cell-1", uses, in_want=False)
        world.clock.forward(10.0)
        assert sorted(uid for uid, _ in world.told) == ["u0", "u1"]
        assert [when for _, when in world.told] == [0.0, 0.2]
        assert world.due() == 0


async def test_a_renewal_meanwhile_does_not_do_for_a_change_that_has_to_spread_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "ROOT_CA_SPREAD", 0.5)
    need = TokenNeed("default", "", 3600, "web", "u")
    async with refreshing() as (world, _):
        tokens = world.references.tokens
        tokens.keep(need, Grant("t", 3600.0, tokens.now + 3600.0))
        held = tokens._held["u"][need]
        held.renew_at = tokens.now + 0.1
        world.pods = [pod("u", spec=access(TOKEN, CA))]
        world.refresher.sent("u", "cell-1", Uses(), in_want=False)
        world.refresher._root_ca_changed()
        world.clock.forward(0.3)
        assert world.told == [("u", 0.1)]
        held.renew_at = tokens.now + 3600.0
        world.refresher.sent("u", "cell-1", Uses(), in_want=False)
        world.clock.forward(10.0)
        assert world.told[1:] == [("u", 0.5)]


async def test_variables_of_many_are_told_one_after_another_and_volumes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "PACE", 50.0)
    key = RefKey("configmaps", "default", "c")
    async with refreshing() as (world, _):
        for number in range(20):
            uses = Uses(for_restarts={key: "5"})
            world.refresher.sent(f"u{number}", "cell-1", uses, in_want=False)
        world.refresher.sent("mounts", "cell-1", Uses({key: "5"}), in_want=False)
        raw = msgspec.Raw(b'{"data":{"k":"2"}}')
        world.refresher.watches.observe_present(key, "6", raw)
        assert [uid for uid, _ in world.told] == ["mounts"]
        # A further change does not make them wait longer.
        world.refresher.watches.observe_present(key, "7", msgspec.Raw(b'{"data":{"k":"3"}}'))
        world.clock.forward(10.0)
        later = [one for one in world.told if one[0] != "mounts"]
        assert later == [(f"u{number}", number / 50) for number in range(20)]
        assert len(world.told) == 22


async def test_a_renewal_is_due_in_time_and_an_earlier_update_puts_it_off() -> None:
    need = TokenNeed("default", "", 3600, "web", "u")
    async with refreshing() as (world, _):
        tokens = world.references.tokens
        tokens.keep(need, Grant("t", 3600.0, tokens.now + 3600.0))
        held = tokens._held["u"][need]
        held.renew_at = tokens.now + 0.3
        world.refresher.sent("u", "cell-1", Uses(), in_want=False)
        held.renew_at = tokens.now + 0.8
        world.refresher.sent("u", "cell-1", Uses(), in_want=False)
        world.clock.forward(10.0)
        assert world.told == [("u", 0.8)]


async def test_what_a_pod_used_is_forgotten_with_it() -> None:
    async with refreshing() as (world, _):
        given = {RefKey("configmaps", "default", "c"): "5"}
        world.refresher.sent("u", "cell-1", Uses(given), in_want=True)
        world.refresher.forget("u")
        assert not world.refresher.watches._index.is_used(RefKey("configmaps", "default", "c"))
        assert world.refresher.counts["tokens"] == 0
