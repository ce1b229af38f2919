"""Pods that want trust bundles wait for the first list, and no longer than it makes sense."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from vknode.agent.trust_bundles import BundleObject, TrustBundles
from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError, Unreachable
from vknode.translate.facts import Missing, TrustNeed

NEED = TrustNeed("root", "", None, False)


class Client(KubeClient):
    """Answers nothing but this."""

    def __init__(self, error: KubeError) -> None:
        self.asked = 0
        self.error = error

    async def get(self, path: str, **_: Any) -> bytes:
        self.asked += 1
        raise self.error


async def test_without_the_right_to_read_them_nobody_waits_for_the_list() -> None:
    client = Client(ApiError(403, "Forbidden", "may not list clustertrustbundles"))
    bundles = TrustBundles(client, sync_seconds=3600.0)
    async with asyncio.timeout(30):
        for _ in range(2):
            answer = await bundles.resolve(NEED)
            assert isinstance(answer, Missing) and "may not list" in answer.message
    assert client.asked == 1
    await bundles.close()


async def test_while_nobody_answers_they_are_waited_for_a_while() -> None:
    bundles = TrustBundles(Client(Unreachable("away")), sync_seconds=0.3)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    answer = await bundles.resolve(NEED)
    assert isinstance(answer, Missing) and loop.time() - begun >= 0.29
    await bundles.close()


async def test_who_starts_while_a_bundle_changes_is_told_once() -> None:
    """It may have been made from the one before."""
    bundles = TrustBundles(Client(Unreachable("away")))
    told: list[str] = []
    bundles.on_changed(told.append)

    def show(name: str, label: str) -> None:
        meta = {"name": name, "uid": name, "labels": {"l": label}}
        bundles.upsert(msgspec.convert({"metadata": meta}, BundleObject))

    show("root", "1")
    bundles.synced()
    bundles.use("before", [NEED])
    assert told == []
    show("root", "2")
    assert told == ["before"]
    bundles.use("starting", [NEED])
    bundles.use("another", [TrustNeed("other", "", None, False)])
    assert told == ["before", "starting"]
    bundles.use("starting", [NEED])
    bundles.use("before", [NEED])
    assert told == ["before", "starting"]
    await bundles.close()
