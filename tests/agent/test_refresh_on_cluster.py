"""What a Pod refers to changes while it runs, and its sandbox gets it: within seconds, through
watches that the real Node authorizer allows, and without a burden on Pods at rest."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from dataclasses import replace
from functools import partial

import msgspec
import pytest

from tests.agent.content import (
    config_map,
    env,
    files,
    has,
    mounts,
    put,
    put_data,
    references,
    remove,
    started,
    watched,
)
from tests.agent.world import PATIENCE, World
from vknode.agent.reference_index import RefKey
from vknode.agent.reference_watches import ReferenceWatches
from vknode.pool.v1 import status_pb2

pytestmark = pytest.mark.cluster


async def test_changes_reach_all_who_mount_through_one_watch_each(world: World) -> None:
    await put(world, "configmaps", "c", k="1")
    await put(world, "secrets", "s", k="1")
    projected = {
        "name": "p",
        "projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]},
    }
    async with world.agent() as agent:
        first = await started(world, "first", **mounts(config_map()))
        both = await started(
            world, "both", **mounts({"name": "v", "secret": {"secretName": "s"}}, projected)
        )
        await watched(world, agent, 2)
        await put(world, "configmaps", "c", k="2", more="x")
        await has(world, first, {"k": b"2", "more": b"x"})
        await put(world, "secrets", "s", other="3")
        await has(world, both, {"other": b"3"})
        await has(world, both, {"k": b"2", "more": b"x", "other": b"3"}, "p")
        assert not world.pool.deletes


async def test_a_change_right_after_the_start_is_not_missed(world: World) -> None:
    """Before the watch is open."""
    await put(world, "configmaps", "c", k="1")
    async with world.agent() as agent:
        uid = await world.create(**mounts(config_map()))
        await world.until(lambda: uid in world.pool.specs)
        assert references(agent)["watched"] == 0
        await put(world, "configmaps", "c", k="2")
        await has(world, uid, {"k": b"2"})


async def test_a_change_of_metadata_alone_is_sent_to_nobody(world: World) -> None:
    await put(world, "configmaps", "c", k="1")
    async with world.agent() as agent:
        uid = await started(world, **mounts(config_map()))
        await watched(world, agent, 1)
        patch = b'{"metadata":{"annotations":{"by":"me"}}}'
        await world.client.patch(world.path("c", "configmaps"), patch)
        await put(world, "configmaps", "c", k="2")
        await has(world, uid, {"k": b"2"})
        assert len(world.pool.updates) == 1


async def test_what_is_optional_comes_and_goes(world: World) -> None:
    async with world.agent():
        uid = await started(world, **mounts(config_map(optional=True)))
        assert files(world.pool.specs[uid]) == {}
        await put(world, "configmaps", "c", k="1")
        await has(world, uid, {"k": b"1"})
        await remove(world, "configmaps", "c")
        await has(world, uid, {})


async def test_a_pod_runs_on_with_what_a_deleted_object_held(world: World) -> None:
    await put(world, "secrets", "s", k="1")
    async with world.agent() as agent:
        uid = await started(world, **mounts({"name": "v", "secret": {"secretName": "s"}}))
        await watched(world, agent, 1)
        await remove(world, "secrets", "s")
        # Other news of the Pod still reaches its sandbox.
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: world.pool.specs[uid].labels.get("new") == "yes")
        assert files(world.pool.specs[uid]) == {"k": b"1"}
        await put(world, "secrets", "s", k="2")
        await has(world, uid, {"k": b"2"})


async def test_what_is_missing_is_told_by_a_watch_not_asked_for_again_and_again(
    world: World,
) -> None:
    async with world.agent() as agent:
        uid = await world.create(**mounts(config_map("later", items=[{"key": "k", "path": "p"}])))
        await world.event("FailedMount")
        await watched(world, agent, 1)
        gets = agent._client.stats.requests["GET"]
        await asyncio.sleep(1.5)
        assert agent._client.stats.requests["GET"] - gets <= 1
        # It comes, but not yet with what is needed.
        await put(world, "configmaps", "later", other="x")
        async with asyncio.timeout(PATIENCE):
            while not any(
                "non-existent config key: k" in event["message"]
                for event in await world.events("FailedMount")
            ):
                await asyncio.sleep(0.05)
        await put(world, "configmaps", "later", k="v")
        await world.phase("Running")
        assert files(world.pool.specs[uid]) == {"p": b"v"}


async def test_a_variable_that_is_missing_is_told_by_a_watch(world: World) -> None:
    source = {"secretKeyRef": {"name": "later", "key": "k"}}
    async with world.agent() as agent:
        uid = await world.create(
            automountServiceAccountToken=False,
            container={"env": [{"name": "K", "valueFrom": source}]},
        )
        await world.event("Failed")
        await watched(world, agent, 1)
        gets = agent._client.stats.requests["GET"]
        await asyncio.sleep(1.5)
        assert agent._client.stats.requests["GET"] - gets <= 1
        await put(world, "secrets", "later", k="v")
        await world.phase("Running")
        assert env(world.pool.specs[uid])["K"] == "v"
        # It goes on: the container may be started again.
        await put(world, "secrets", "later", k="w")
        await world.until(lambda: env(world.pool.specs[uid])["K"] == "w")
        assert references(agent)["watched"] == 1


async def test_variables_go_along_and_are_fresh_for_the_next_start(world: World) -> None:
    await put(world, "configmaps", "c", k="1")
    await put(world, "configmaps", "only-env", k="1")
    sources = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "only-env", "key": "k"}}},
    ]
    async with world.agent() as agent:
        uid = await started(world, **mounts(config_map(), env=sources))
        await watched(world, agent, 2)
        await put(world, "configmaps", "c", k="2")
        await world.until(lambda: env(world.pool.specs[uid]).get("A") == "2")
        # The pool has it before a crash, whose first restart comes at once.
        await put(world, "configmaps", "only-env", k="2")
        await world.until(lambda: env(world.pool.specs[uid])["B"] == "2")
        # And for a restart later than that.
        world.pool.crash(uid)
        await put(world, "configmaps", "only-env", k="3")
        await world.until(lambda: env(world.pool.specs[uid])["B"] == "3")
        # What goes does not trouble what runs.
        await remove(world, "configmaps", "only-env")
        await world.until(lambda: world.pool.specs[uid].containers[0].config_error)
        record = agent.records[uid]
        await world.until(lambda: record.stale == record.fresh)
        assert not record.config_errors
        assert await world.events("Failed") == []


async def test_variables_are_followed_by_the_next_agent_too(world: World) -> None:
    await put(world, "configmaps", "only-env", k="1")
    source = {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "only-env", "key": "k"}}}
    async with world.agent():
        uid = await started(world, **mounts(env=[source]))
    await put(world, "configmaps", "only-env", k="2")
    async with world.agent():
        await world.until(lambda: env(world.pool.specs[uid])["B"] == "2")
        await put(world, "configmaps", "only-env", k="3")
        await world.until(lambda: env(world.pool.specs[uid])["B"] == "3")


async def test_variables_beyond_the_room_for_them_are_looked_up_after_a_crash(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave their watch to what containers see, and are not read again and again."""
    visits: Counter[str] = Counter()

    class Counted(ReferenceWatches):
        async def _visit(self, key: RefKey) -> None:
            await super()._visit(key)
            visits[key.name] += 1

    world.config = replace(world.config, max_reference_watches=2)
    monkeypatch.setattr("vknode.agent.refresh.ReferenceWatches", partial(Counted, poll=(0.1, 0.2)))
    await put(world, "configmaps", "only-env", k="1")
    source = {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "only-env", "key": "k"}}}
    async with world.agent() as agent:
        uid = await started(world, **mounts(env=[source]))
        await watched(world, agent, 1)
        for name in ("c", "d"):
            await put(world, "configmaps", name, k="1")
        other = await started(world, "other", **mounts(config_map("c"), config_map("d", "w")))
        await world.until(lambda: references(agent)["unwatched"] == 1)
        await watched(world, agent, 2)
        assert references(agent)["polled"] == 0
        record = agent.records[uid]
        stale = record.stale
        await put(world, "configmaps", "only-env", k="2")
        # A watch or a reading would have shown it by now.
        seen = visits["only-env"]
        await world.until(lambda: visits["only-env"] >= seen + 3)
        for name, volume in (("c", "v"), ("d", "w")):
            await put(world, "configmaps", name, k="2")
            await has(world, other, {"k": b"2"}, volume)
        assert record.stale == stale
        assert env(world.pool.specs[uid])["B"] == "1"
        world.pool.crash(uid)
        await world.until(lambda: env(world.pool.specs[uid])["B"] == "2")


async def test_what_cannot_change_is_not_watched(world: World) -> None:
    await put(world, "configmaps", "fixed", immutable=True, k="1")
    await put(world, "configmaps", "c", k="1")
    await put(world, "configmaps", "only-env", k="1")
    # It gives variables to what never starts again.
    source = {"configMapRef": {"name": "only-env"}}
    async with world.agent() as agent:
        await started(
            world,
            restartPolicy="Never",
            **mounts(config_map("fixed"), config_map("c", "w"), envFrom=[source]),
        )
        await watched(world, agent, 1)
        # It says later that it is fixed: the watch ends.
        await put(world, "configmaps", "c", immutable=True, k="1")
        await watched(world, agent, 0)


async def test_beyond_the_limit_objects_are_read_again_and_that_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vknode.agent.refresh.ReferenceWatches", partial(ReferenceWatches, poll=(0.3, 0.6))
    )
    world.config = replace(world.config, max_reference_watches=1)
    for name in ("a", "b"):
        await put(world, "configmaps", name, k="1")
    async with world.agent() as agent:
        uid = await started(world, **mounts(config_map("a"), config_map("b", "w")))
        await world.until(
            lambda: references(agent) == {"watched": 1, "polled": 1, "unwatched": 0, "tokens": 0}
        )
        for name in ("a", "b"):
            await put(world, "configmaps", name, k="2")
        await has(world, uid, {"k": b"2"}, "v")
        await has(world, uid, {"k": b"2"}, "w")
        await remove(world, "configmaps", "a")
        await remove(world, "configmaps", "b")
        for name in ("a", "b"):
            await put(world, "configmaps", name, k="3")
        await has(world, uid, {"k": b"3"}, "v")
        await has(world, uid, {"k": b"3"}, "w")


async def test_a_watch_ends_some_time_after_its_last_pod(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vknode.agent.refresh.ReferenceWatches", partial(ReferenceWatches, linger=0.3)
    )
    await put(world, "configmaps", "c", k="1")
    async with world.agent() as agent:
        await started(world, "first", **mounts(config_map()))
        second = await started(world, "second", **mounts(config_map()))
        await watched(world, agent, 1)
        await world.delete("first")
        await world.when(lambda pod: pod is None, "first")
        await asyncio.sleep(0.5)
        assert references(agent)["watched"] == 1
        sandbox = world.pool.sandboxes[second]
        sandbox.state = status_pb2.SANDBOX_STATE_SUCCEEDED
        world.pool.tell(sandbox)
        await watched(world, agent, 0)


async def test_what_changed_while_the_agent_was_away_is_made_good(world: World) -> None:
    await put(world, "configmaps", "c", k="1")
    async with world.agent():
        uid = await started(world, **mounts(config_map()))
    await put(world, "configmaps", "c", k="2")
    async with world.agent():
        await has(world, uid, {"k": b"2"})
        await put(world, "configmaps", "c", k="3")
        await has(world, uid, {"k": b"3"})
        assert world.pool.creates == [uid]


async def test_a_young_pod_with_nothing_but_a_token_is_left_alone_by_a_new_agent(
    world: World,
) -> None:
    async with world.agent():
        await started(world)
    async with world.agent() as agent:
        await world.until(lambda: agent.ready)
        await asyncio.sleep(1.5)
        assert world.pool.updates == []


async def test_tokens_are_renewed_before_they_expire(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vknode.agent.tokens.MAX_AGE", 1.0)
    monkeypatch.setattr("vknode.agent.tokens.MAX_JITTER", 0.0)
    monkeypatch.setattr("vknode.agent.tokens.RETRY", (0.5, 0.6))
    async with world.agent() as agent:
        uid = await started(world)

        def token() -> bytes:
            return files(world.pool.specs[uid], world.pool.specs[uid].volumes[0].name)["token"]

        seen = {token()}
        for _ in range(2):
            await world.until(lambda: token() not in seen)
            seen.add(token())
        claims = [base64.urlsafe_b64decode(one.split(b".")[1] + b"==") for one in seen]
        for claim in claims:
            assert msgspec.json.decode(claim)["kubernetes.io"]["pod"]["uid"] == uid
        assert references(agent)["tokens"] == 1
        await world.delete()
        await world.when(lambda pod: pod is None)
        # One that was just being renewed is forgotten with the Pod.
        await world.until(lambda: references(agent)["tokens"] == 0)


async def test_a_new_root_ca_reaches_every_pod(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Pod is looked at again, some time after one namespace's copy was seen to change."""
    monkeypatch.setattr("vknode.agent.refresh.ROOT_CA_SPREAD", 0.2)
    asked: set[str] = set()
    async with world.agent() as agent:
        uids = {await started(world, name) for name in ("a", "b")}
        none = await started(world, "none", automountServiceAccountToken=False)
        stale = agent.refresher._stale

        def tell(uid: str) -> None:
            asked.add(uid)
            stale(uid)

        agent.refresher.on_stale(tell)
        await world.until(lambda: agent.refresher.root_ca_seen)
        # kube-controller-manager puts it right again at once, which is another change.
        await put_data(world, "configmaps", "kube-root-ca.crt", {"ca.crt": "another"})
        await world.until(lambda: uids <= asked)
        assert none not in asked
