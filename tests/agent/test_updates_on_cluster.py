"""Nothing that became of a Pod's surroundings holds up what its sandbox can still be given: labels,
debug containers, other volumes, and above all tokens that would expire."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest

from tests.agent.content import (
    config_map,
    env,
    files,
    has,
    mounts,
    put,
    references,
    remove,
    started,
    watched,
)
from tests.agent.world import World
from vknode.agent.config import KubeletConfig
from vknode.agent.reference_index import Uses
from vknode.agent.reference_watches import ReferenceWatches
from vknode.agent.refresh import Refresher
from vknode.agent.spec_builder import SpecBuilder
from vknode.kube.client import STRATEGIC_PATCH
from vknode.kube.errors import ApiError
from vknode.pool.errors import REFUSED, PoolFailure

pytestmark = pytest.mark.cluster

RUNTIME_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
TOKEN = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
SECRET = {"name": "s", "secret": {"secretName": "s"}}


@pytest.fixture
def tokens_live_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are renewed that often; the API server grants none that short."""
    monkeypatch.setattr("vknode.agent.tokens.MAX_AGE", 1.0)
    monkeypatch.setattr("vknode.agent.tokens.MAX_JITTER", 0.0)
    monkeypatch.setattr("vknode.agent.tokens.RETRY", (0.5, 0.6))


async def label(world: World, uid: str, value: str) -> None:
    """Gives the Pod a label, and waits until its sandbox has it."""
    body = msgspec.json.encode({"metadata": {"labels": {"new": value}}})
    await world.client.patch(world.path("web"), body)
    await world.until(lambda: world.pool.specs[uid].labels.get("new") == value)


async def renewed(world: World, uid: str) -> None:
    """Waits until the sandbox has another token than now."""
    before = files(world.pool.specs[uid], "t")["token"]
    await world.until(lambda: files(world.pool.specs[uid], "t")["token"] != before)


async def test_a_runtime_class_that_was_deleted_stops_no_update(
    world: World, tokens_live_a_second: None
) -> None:
    name = world.node
    body: dict[str, Any] = {"metadata": {"name": name}, "handler": "special"}
    await world.client.create(RUNTIME_CLASSES, msgspec.json.encode(body))
    try:
        async with world.agent():
            uid = await started(world, runtimeClassName=name, **mounts(TOKEN))
            assert world.pool.specs[uid].runtime_handler == "special"
            # As long as it is there an update shows no difference, which a pool might refuse.
            await renewed(world, uid)
            assert world.pool.updates and not world.pool.kept
            await world.client.delete(f"{RUNTIME_CLASSES}/{name}")
            await label(world, uid, "1")
            await renewed(world, uid)
        async with world.agent():
            await label(world, uid, "2")
            await renewed(world, uid)
            assert world.pool.kept == {"runtime_handler"}
            debug = {"name": "debug", "image": "busybox:1.36"}
            await world.client.patch(
                f"{world.path('web')}/ephemeralcontainers",
                msgspec.json.encode({"spec": {"ephemeralContainers": [debug]}}),
                content_type=STRATEGIC_PATCH,
            )
            await world.until(lambda: world.pool.specs[uid].ephemeral_containers)
            assert world.pool.specs[uid].runtime_handler == "special"
            assert await world.events("UnsupportedField") == []
    finally:
        try:
            await world.client.delete(f"{RUNTIME_CLASSES}/{name}")
        except ApiError as error:
            assert error.is_not_found


async def test_a_secret_that_was_deleted_keeps_only_its_own_volume_back(
    world: World, tokens_live_a_second: None
) -> None:
    await put(world, "secrets", "s", k="1")
    await put(world, "configmaps", "c", k="1")
    async with world.agent() as agent:
        uid = await started(world, **mounts(SECRET, config_map(), TOKEN))
        await watched(world, agent, 2)
        await remove(world, "secrets", "s")
        event = await world.event("FailedMount")
        assert event["message"] == 'MountVolume.SetUp failed for volume "s" : secret "s" not found'
        await put(world, "configmaps", "c", k="2")
        await has(world, uid, {"k": b"2"})
        await renewed(world, uid)
        assert files(world.pool.specs[uid], "s") == {"k": b"1"}
    # Nor does another agent, which never saw the Secret.
    async with world.agent() as agent:
        await renewed(world, uid)
        await put(world, "configmaps", "c", k="3")
        await has(world, uid, {"k": b"3"})
        await label(world, uid, "1")
        assert files(world.pool.specs[uid], "s") == {"k": b"1"}
        await put(world, "secrets", "s", k="2")
        await has(world, uid, {"k": b"2"}, "s")
    pod = await world.phase("Running")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_an_agent_with_another_configuration_goes_on_with_the_pods_of_the_one_before(
    world: World, tokens_live_a_second: None
) -> None:
    def use_dns(address: str) -> None:
        kubelet = KubeletConfig(address="127.0.0.1", port=10250, cluster_dns=(address,))
        world.config = replace(world.config, kubelet=kubelet)

    use_dns("10.96.0.10")
    async with world.agent():
        uid = await started(world, **mounts(TOKEN))
    use_dns("10.96.0.99")
    async with world.agent():
        await label(world, uid, "1")
        await renewed(world, uid)
        assert world.pool.specs[uid].network.dns.servers == ["10.96.0.10"]
        other = await started(world, "other")
        assert world.pool.specs[other].network.dns.servers == ["10.96.0.99"]
        assert await world.events("UnsupportedField") == []


async def test_a_pool_that_refuses_an_update_gets_the_next_token_all_the_same(
    world: World, tokens_live_a_second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vknode.agent.refresh.REFUSED_AGAIN", (0.3, 0.4))
    async with world.agent():
        uid = await started(world, **mounts(TOKEN))
        failures = world.pool.update_failures = [
            PoolFailure(REFUSED, "not today", field="labels") for _ in range(4)
        ]
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: not failures)
        await renewed(world, uid)
        assert world.pool.specs[uid].labels["new"] == "yes"
        event = await world.event("PoolRefused")
        assert len(await world.events("PoolRefused")) == 1
        assert event["message"] == "the change is not carried out: metadata.labels: not today"
        assert event.get("count", 1) == 1


async def test_a_change_that_a_pool_cannot_make_is_told_and_stops_nothing(world: World) -> None:
    async with world.agent():
        uid = await started(world)
        world.pool.also_kept = ["containers[0].image", "network.dns"]
        container = {"name": "main", "image": "busybox:1.37"}
        await world.client.patch(
            world.path("web"),
            msgspec.json.encode({"spec": {"containers": [container]}}),
            content_type=STRATEGIC_PATCH,
        )
        event = await world.event("UnsupportedField")
        assert event["message"] == (
            "the change of spec.containers[0].image is not carried out: recreate the Pod for it"
        )
        await label(world, uid, "1")
        assert len(await world.events("UnsupportedField")) == 1


async def test_a_deleted_object_that_could_not_change_still_serves_its_pods(world: World) -> None:
    """Its content is what they have, also for the next start of a container."""
    await put(world, "secrets", "s", immutable=True, k="1")
    await put(world, "configmaps", "c", k="1")
    sources = [
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    async with world.agent():
        uid = await started(world, **mounts(SECRET, env=sources))
        await remove(world, "secrets", "s")
        await put(world, "configmaps", "c", k="2")
        world.pool.crash(uid)
        await world.until(lambda: env(world.pool.specs[uid])["C"] == "2")
        assert env(world.pool.specs[uid])["S"] == "1"
        assert world.pool.specs[uid].containers[0].config_error == ""
        assert files(world.pool.specs[uid], "s") == {"k": b"1"}
        assert await world.events("FailedMount") == []
        # Who comes now has no part in it.
        await world.create("late", **mounts(SECRET))
        event = await world.event("FailedMount")
        assert event["involvedObject"]["name"] == "late"


async def test_what_became_immutable_later_is_remembered_too(world: World) -> None:
    await put(world, "configmaps", "c", k="1")
    source = {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}
    async with world.agent() as agent:
        uid = await started(world, **mounts(config_map(), env=[source]))
        await watched(world, agent, 1)
        await put(world, "configmaps", "c", immutable=True, k="1")
        await watched(world, agent, 0)
        record = agent.records[uid]
        await world.until(lambda: record.stale == record.fresh)
        await remove(world, "configmaps", "c")
        await label(world, uid, "1")
        assert world.pool.specs[uid].containers[0].config_error == ""
        assert await world.events("FailedMount") == []


def docker_config(password: str) -> bytes:
    config = {"auths": {"registry.example": {"username": "ann", "password": password}}}
    body = {
        "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": msgspec.json.encode(config).decode()},
    }
    return msgspec.json.encode(body)


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImageNeverPull"])
async def test_a_pull_secret_that_comes_late_serves_the_next_try(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Also where the image is there: the secret decides who may use it."""
    monkeypatch.setattr(
        "vknode.agent.refresh.ReferenceWatches", partial(ReferenceWatches, linger=0.1)
    )
    world.pool.starts_by_itself = False
    async with world.agent() as agent:
        uid = await world.create(
            imagePullSecrets=[{"name": "pull"}], automountServiceAccountToken=False
        )
        await world.event("FailedToRetrieveImagePullSecret")
        # Nobody needs it yet.
        assert references(agent)["watched"] == 0
        world.pool.waits(uid, reason)
        await watched(world, agent, 1)

        def passwords() -> list[str]:
            return [one.password for one in world.pool.specs[uid].registry_credentials]

        await world.client.create(world.path(kind="secrets"), docker_config("wrong"))
        await world.until(lambda: passwords() == ["wrong"])
        await world.client.put(world.path("pull", "secrets"), docker_config("right"))
        await world.until(lambda: passwords() == ["right"])
    # An agent that finds it so follows it as well.
    await world.client.put(world.path("pull", "secrets"), docker_config("newer"))
    async with world.agent() as agent:
        await world.until(lambda: passwords() == ["newer"])
        await watched(world, agent, 1)
        world.pool.start(uid)
        # Nobody needs it any more.
        await watched(world, agent, 0)
        record = agent.records[uid]
        await world.until(lambda: not record.lacks_image and record.stale == record.fresh)
        before = len(world.pool.updates)
        await world.client.put(world.path("pull", "secrets"), docker_config("newest"))
        await label(world, uid, "1")
        assert len(world.pool.updates) == before + 1


async def test_images_that_many_cannot_pull_cost_one_look_after_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry is away, and back: the API server is not asked for all their secrets at once."""
    monkeypatch.setattr("vknode.agent.refresh.PACE", 4.0)
    looks: list[tuple[float, str]] = []
    build_again = SpecBuilder.build_again

    async def timed(self: SpecBuilder, pod: dict[str, Any], *args: Any, **named: Any) -> Any:
        looks.append((time.monotonic(), pod["metadata"]["uid"]))
        return await build_again(self, pod, *args, **named)

    monkeypatch.setattr(SpecBuilder, "build_again", timed)

    wanted: list[float] = []
    soon = Refresher.soon

    def noted(self: Refresher, uid: str) -> None:
        wanted.append(time.monotonic())
        soon(self, uid)

    monkeypatch.setattr(Refresher, "soon", noted)

    async def one_after_another(uids: list[str]) -> None:
        await world.until(lambda: {uid for _, uid in looks} == set(uids))
        # However late the first comes: the last has its turn, counted from when all were wanted.
        assert looks[-1][0] - wanted[0] >= 0.6
        assert len(wanted) == 4
        looks.clear()
        wanted.clear()

    world.pool.starts_by_itself = False
    spec = {"imagePullSecrets": [{"name": "pull"}], "automountServiceAccountToken": False}
    async with world.agent():
        uids = [await world.create(f"p{number}", **spec) for number in range(4)]
        await world.until(lambda: len(world.pool.specs) == 4)
        for uid in uids:
            world.pool.waits(uid, "ImagePullBackOff")
        await one_after_another(uids)
    async with world.agent() as agent:
        await one_after_another(uids)
        for uid in uids:
            world.pool.start(uid)
        await one_after_another(uids)
        assert not any(agent.records[uid].lacks_image for uid in uids)


async def test_updates_that_are_refused_again_and_again_are_sent_ever_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its watch shows an object that a node may not read: that is always news."""
    refused = Refresher.refused

    def and_changed(self: Refresher, uid: str, node: str, uses: Uses) -> None:
        refused(self, uid, node, uses)
        self._stale(uid)

    monkeypatch.setattr(Refresher, "refused", and_changed)
    async with world.agent():
        uid = await started(world)
        failures = world.pool.update_failures = [
            PoolFailure(REFUSED, "not today", field="labels") for _ in range(4)
        ]
        begun = time.monotonic()
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: not failures)
        assert time.monotonic() - begun >= 0.125 + 0.25 + 0.5
        await world.until(lambda: world.pool.specs[uid].labels.get("new") == "yes")
