"""The agent in this process, on the real control plane, with a pool at the client's seam.

What a user sees of Pods: started with one write, refused with a reason, waiting for what they
name, ended in order, never started twice; and what an agent does that was away.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from tests.agent.world import PATIENCE, World, node_events
from vknode.agent.config import DeletionConfig, KubeletConfig
from vknode.agent.losses import Losses
from vknode.agent.metric_families import BRAKED_SANDBOXES
from vknode.agent.orphans import OrphanRule
from vknode.agent.privileges import Grant
from vknode.kube.client import STRATEGIC_PATCH
from vknode.pool.errors import NO_CAPACITY, REFUSED, RETRYABLE, UNSUPPORTED_FIELD, PoolFailure
from vknode.pool.v1 import status_pb2
from vknode.translate.privileges import Allowed

pytestmark = pytest.mark.cluster


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is between two states is written only if it lasts longer than a busy machine can make
    it last: writes are counted."""
    for module in ("sync", "pod_steps"):
        monkeypatch.setattr(f"vknode.agent.{module}.PROGRESS_DELAY", PATIENCE)


async def test_a_start_is_one_write_and_is_timed(world: World, patient: None) -> None:
    async with world.agent() as agent:
        before = agent._client.stats.requests.get("PATCH", 0)
        gets = agent._client.stats.requests.get("GET", 0)
        uid = await world.create()
        pod = await world.phase("Running")
        assert pod["status"]["podIP"] == "10.9.0.7"
        assert pod["status"]["hostIP"] == "127.0.0.1"
        ready = {c["type"]: c["status"] for c in pod["status"]["conditions"]}
        assert ready["Ready"] == ready["PodReadyToStartContainers"] == "True"
        await world.until(lambda: "status_written" in str(agent.metrics.timings.as_json()))
        assert agent._client.stats.requests["PATCH"] - before == 1
        # The only GET is that of kube-root-ca.crt, for the token volume.
        assert agent._client.stats.requests["GET"] - gets <= 1
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{agent.metrics_address}/debug/timings") as response,
        ):
            (timing,) = await response.json()
        assert timing["uid"] == uid
        assert timing["name"] == "web"
        assert timing["seen"] <= timing["sandbox_asked"] <= timing["sandbox_accepted"]
        assert timing["status_sent"] <= timing["status_written"]
        token = world.pool.specs[uid].volumes[0].files.files
        assert any(file.path == "token" and len(file.content) > 100 for file in token)


async def test_an_end_is_confirmed_by_the_pool_before_the_object_goes(world: World) -> None:
    world.pool.ends_by_itself = False
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        await world.delete()
        await world.until(lambda: world.pool.deletes)
        assert world.pool.deletes == [(uid, 5)]
        still = await world.get()
        assert still is not None
        assert "running" in still["status"]["containerStatuses"][0]["state"]
        # A shorter grace reaches the pool.
        await world.delete(grace=2)
        await world.until(lambda: (uid, 2) in world.pool.deletes)
        world.pool.end(uid)
        await world.when(lambda pod: pod is None)


async def test_an_end_while_the_agent_was_away_is_told_with_its_exit_code(world: World) -> None:
    world.pool.ends_by_itself = False
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        # Somebody wants to look at it before it goes.
        await world.client.patch(world.path("web"), b'{"metadata":{"finalizers":["a.example/b"]}}')
        await world.delete()
        await world.until(lambda: world.pool.deletes)
    world.pool.end(uid)
    async with world.agent():
        status = (await world.phase("Succeeded"))["status"]
        end = status["containerStatuses"][0]["state"]["terminated"]
        assert (end["exitCode"], end["reason"]) == (0, "Completed")
        await world.client.patch(world.path("web"), b'{"metadata":{"finalizers":null}}')
        await world.when(lambda pod: pod is None)


async def test_a_quick_end_is_one_write(world: World, patient: None) -> None:
    world.pool.ends_by_itself = False
    async with world.agent() as agent:
        uid = await world.create()
        await world.phase("Running")
        await world.until(lambda: "status_written" in str(agent.metrics.timings.as_json()))
        before = agent._client.stats.requests["PATCH"]
        await world.delete()
        await world.until(lambda: world.pool.deletes)
        world.pool.sandboxes[uid].deleting = True
        world.pool.tell(world.pool.sandboxes[uid])
        record = agent.records[uid]
        await world.until(lambda: record.sandbox is not None and record.sandbox.deleting)
        await asyncio.sleep(0.1)
        world.pool.end(uid)
        await world.when(lambda pod: pod is None)
        assert agent._client.stats.requests["PATCH"] - before == 1


async def test_a_long_end_is_told_before_it_is_over(world: World) -> None:
    world.pool.ends_by_itself = False
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        await world.delete()
        pod = await world.when(
            lambda pod: pod and pod["status"].get("observedGeneration") == 2  # a deletion raises it
        )
        assert "running" in pod["status"]["containerStatuses"][0]["state"]
        world.pool.end(uid)
        await world.when(lambda pod: pod is None)


async def test_the_same_name_again_is_another_sandbox(world: World) -> None:
    async with world.agent():
        uids = []
        for _ in range(3):
            uids.append(await world.create())
            await world.phase("Running")
            await world.delete()
            await world.when(lambda pod: pod is None)
        assert world.pool.creates == uids
        assert len(set(uids)) == 3
        assert not world.pool.sandboxes


async def test_a_forced_deletion_ends_the_sandbox(world: World) -> None:
    async with world.agent() as agent:
        uid = await world.create()
        await world.phase("Running")
        await world.delete(grace=0)
        await world.until(lambda: uid not in world.pool.sandboxes)
        await world.until(lambda: uid not in agent.records)


async def test_a_pod_deleted_while_the_pool_is_away_waits_for_it(world: World) -> None:
    async with world.agent():
        await world.create()
        await world.phase("Running")
        world.pool.away = True
        await world.delete()
        await asyncio.sleep(0.3)
        assert await world.get() is not None
        world.pool.away = False
        await world.when(lambda pod: pod is None)


async def test_an_unsupported_field_fails_at_once_with_its_path(world: World) -> None:
    async with world.agent():
        await world.create(volumes=[{"name": "n", "nfs": {"server": "x", "path": "/"}}])
        pod = await world.phase("Failed")
        assert pod["status"]["reason"] == "UnsupportedField"
        assert "spec.volumes[0].nfs" in pod["status"]["message"]
        event = await world.event("UnsupportedField")
        assert "spec.volumes[0].nfs" in event["message"]
        assert not world.pool.creates
        await world.delete()
        await world.when(lambda pod: pod is None)


@pytest.mark.parametrize(
    ("failure", "reason", "words"),
    [
        (
            PoolFailure(UNSUPPORTED_FIELD, "no probes here", field="containers[0].readiness_probe"),
            "UnsupportedField",
            "spec.containers[0].readinessProbe",
        ),
        (PoolFailure(REFUSED, "no such image policy"), "PoolRefused", "no such image policy"),
        (PoolFailure(NO_CAPACITY, "the cell is full", field="cpu"), "OutOfcpu", "full"),
    ],
)
async def test_what_the_pool_refuses_fails_with_its_words(
    world: World, failure: PoolFailure, reason: str, words: str
) -> None:
    world.pool.create_failures = [failure]
    async with world.agent():
        await world.create()
        pod = await world.phase("Failed")
        assert pod["status"]["reason"] == reason
        assert words in pod["status"]["message"]
        await world.event(reason)


async def test_a_pool_that_fails_for_now_is_tried_again(world: World) -> None:
    world.pool.create_failures = [PoolFailure(RETRYABLE, "disk busy")] * 2
    async with world.agent():
        await world.create()
        await world.phase("Running")
        event = await world.event("FailedCreatePodSandBox")
        assert "disk busy" in event["message"]


async def test_a_pod_that_never_started_can_be_deleted(world: World) -> None:
    world.pool.create_failures = [PoolFailure(RETRYABLE, "disk busy")] * 1000
    async with world.agent() as agent:
        await world.create()
        await world.event("FailedCreatePodSandBox")
        await world.delete()
        await world.when(lambda pod: pod is None)
        assert not world.pool.creates
        await world.until(lambda: not agent.records)


async def test_a_pod_deleted_before_its_start_ends_as_failed(world: World) -> None:
    """Whoever holds it back with a finalizer, as Jobs do, sees how it ended."""
    world.pool.create_failures = [PoolFailure(RETRYABLE, "disk busy")] * 1000
    async with world.agent():
        await world.create()
        await world.event("FailedCreatePodSandBox")
        hold = b'{"metadata":{"finalizers":["example.com/hold"]}}'
        await world.client.patch(world.path("web"), hold)
        await world.delete()
        pod = await world.phase("Failed")
        (status,) = pod["status"]["containerStatuses"]
        assert status["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
        await world.client.patch(world.path("web"), b'{"metadata":{"finalizers":null}}')
        await world.when(lambda pod: pod is None)


async def test_a_missing_volume_holds_the_pod_until_it_is_there(world: World) -> None:
    async with world.agent():
        await world.create(
            volumes=[{"name": "c", "configMap": {"name": "later"}}],
            container={"volumeMounts": [{"name": "c", "mountPath": "/c"}]},
        )
        event = await world.event("FailedMount")
        assert "later" in event["message"]
        pod = await world.when(lambda pod: pod and pod["status"].get("containerStatuses"))
        waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
        assert waiting["reason"] == "ContainerCreating"
        assert not world.pool.creates
        await world.client.create(
            world.path(kind="configmaps"),
            msgspec.json.encode({"metadata": {"name": "later"}, "data": {"k": "v"}}),
        )
        await world.phase("Running")


async def test_a_missing_variable_holds_its_container_until_it_is_there(world: World) -> None:
    env = [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "later", "key": "k"}}}]
    async with world.agent():
        uid = await world.create(container={"env": env})
        pod = await world.when(
            lambda pod: pod and "CreateContainerConfigError" in str(pod["status"])
        )
        assert pod["status"]["phase"] == "Pending"
        event = await world.event("Failed")
        assert 'secret "later" not found' in event["message"]
        await world.client.create(
            world.path(kind="secrets"),
            msgspec.json.encode({"metadata": {"name": "later"}, "data": {"k": "dg=="}}),
        )
        await world.phase("Running")
        env_sent = {e.name: e.value for e in world.pool.specs[uid].containers[0].env}
        assert env_sent["K"] == "v"
        assert env_sent["KUBERNETES_SERVICE_PORT"] == "443"


async def test_a_missing_pull_secret_is_told_and_stops_nothing(world: World) -> None:
    async with world.agent():
        await world.create(imagePullSecrets=[{"name": "nowhere"}])
        await world.phase("Running")
        event = await world.event("FailedToRetrieveImagePullSecret")
        assert event["type"] == "Warning"
        assert "(nowhere)" in event["message"]


async def test_pods_get_the_clusters_dns_where_it_is_configured(world: World) -> None:
    async with world.agent():
        without = await world.create("without")
        await world.phase("Running", "without")
        assert not world.pool.specs[without].network.HasField("dns")
        async with asyncio.timeout(PATIENCE):
            while not await node_events(world, "MissingClusterDNS"):
                await asyncio.sleep(0.05)
        (message,) = await node_events(world, "MissingClusterDNS")
        assert "kubelet.clusterDNS" in message
    dns = KubeletConfig(cluster_dns=("10.96.0.10",), cluster_domain="k8s.example")
    world.config = replace(world.config, kubelet=dns)
    async with world.agent():
        with_dns = await world.create("with")
        await world.phase("Running", "with")
        sent = world.pool.specs[with_dns].network.dns
        assert list(sent.servers) == ["10.96.0.10"]
        assert f"{world.namespace}.svc.k8s.example" in sent.searches
        assert len(await node_events(world, "MissingClusterDNS")) == 1


async def test_changed_labels_reach_the_pool(world: World) -> None:
    async with world.agent():
        await world.create()
        await world.phase("Running")
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: world.pool.updates)
        assert world.pool.updates[0].labels["new"] == "yes"
        await asyncio.sleep(0.2)
        assert len(world.pool.updates) == 1


async def test_a_debug_container_may_have_no_more_than_its_pod(world: World) -> None:
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        debug = {"name": "debug", "image": "busybox:1.36", "securityContext": {"privileged": True}}
        await world.client.patch(
            f"{world.path('web')}/ephemeralcontainers",
            msgspec.json.encode({"spec": {"ephemeralContainers": [debug]}}),
            content_type=STRATEGIC_PATCH,
        )
        event = await world.event("PrivilegeNotAllowed")
        for word in (
            "spec.ephemeralContainers[0].securityContext.privileged",
            "privileges[].allow",
        ):
            assert word in event["message"]
        assert event["involvedObject"]["fieldPath"] == "spec.ephemeralContainers{debug}"
        await world.until(lambda: world.pool.updates)
        assert not world.pool.specs[uid].ephemeral_containers
        assert not any(one.ephemeral_containers for one in world.pool.updates)


async def test_a_pod_that_runs_stays_when_what_it_has_is_closed(world: World) -> None:
    """Under a new configuration nothing that runs is judged again."""
    opened = Grant((world.namespace,), Allowed(host_network=True))
    world.config = replace(world.config, privileges=(opened,))
    async with world.agent():
        uid = await world.create(hostNetwork=True)
        await world.phase("Running")
    world.config = replace(world.config, privileges=())
    async with world.agent():
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: world.pool.specs[uid].labels.get("new") == "yes")
        assert (await world.phase("Running"))["status"]["phase"] == "Running"


async def test_a_refused_debug_container_stops_no_later_update(world: World) -> None:
    opened = Grant((world.namespace,), Allowed(privileged=True))
    world.config = replace(world.config, privileges=(opened,))
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        world.pool.update_failures = [
            PoolFailure(
                UNSUPPORTED_FIELD, "not here", field="ephemeral_containers[0].security.privileged"
            )
        ]
        debug = {"name": "debug", "image": "busybox:1.36", "securityContext": {"privileged": True}}
        await world.client.patch(
            f"{world.path('web')}/ephemeralcontainers",
            msgspec.json.encode({"spec": {"ephemeralContainers": [debug]}}),
            content_type=STRATEGIC_PATCH,
        )
        event = await world.event("UnsupportedField")
        assert "spec.ephemeralContainers[0].securityContext.privileged" in event["message"]
        assert event["involvedObject"]["fieldPath"] == "spec.ephemeralContainers{debug}"
        await world.client.patch(world.path("web"), b'{"metadata":{"labels":{"new":"yes"}}}')
        await world.until(lambda: world.pool.specs[uid].labels.get("new") == "yes")
        assert not world.pool.specs[uid].ephemeral_containers
        assert (await world.phase("Running"))["status"]["phase"] == "Running"


async def test_debug_containers_and_resizes_reach_the_pool(world: World) -> None:
    resources = {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}}
    async with world.agent():
        uid = await world.create(container={"resources": resources})
        await world.phase("Running")
        debug = {"name": "debug", "image": "busybox:1.36", "targetContainerName": "main"}
        await world.client.patch(
            f"{world.path('web')}/ephemeralcontainers",
            msgspec.json.encode({"spec": {"ephemeralContainers": [debug]}}),
            content_type=STRATEGIC_PATCH,
        )
        await world.until(lambda: world.pool.specs[uid].ephemeral_containers)
        (sent,) = world.pool.specs[uid].ephemeral_containers
        assert (sent.name, sent.target_container) == ("debug", "main")
        resources["requests"]["cpu"] = "150m"
        container = {"name": "main", "resources": resources}
        await world.client.patch(
            f"{world.path('web')}/resize",
            msgspec.json.encode({"spec": {"containers": [container]}}),
            content_type=STRATEGIC_PATCH,
        )
        await world.until(
            lambda: world.pool.specs[uid].containers[0].resources.requests["cpu"] == "150m"
        )
        assert world.pool.specs[uid].generation == 3
        # The API server lets only nodes have this that declare that they can.
        whole = {"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}}
        await world.create("whole", resources=whole)
        await world.phase("Running", "whole")
        whole["requests"]["cpu"] = "600m"
        await world.client.patch(
            f"{world.path('whole')}/resize",
            msgspec.json.encode({"spec": {"resources": whole}}),
            content_type=STRATEGIC_PATCH,
        )
        await world.until(
            lambda: any(
                spec.resources.requests["cpu"] == "600m" for spec in world.pool.specs.values()
            )
        )
        assert len(world.pool.creates) == 2


async def test_labels_changed_before_and_after_an_adoption_reach_the_pool(world: World) -> None:
    shown = {"fieldRef": {"fieldPath": "metadata.labels"}, "path": "labels"}
    async with world.agent():
        shows = await world.create(
            "shows",
            volumes=[{"name": "v", "downwardAPI": {"items": [shown]}}],
            container={"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        )
        await world.phase("Running", "shows")
        plain = await world.create("plain")
        await world.phase("Running", "plain")
    patch = b'{"metadata":{"labels":{"away":"yes"}}}'
    await world.client.patch(world.path("shows"), patch)
    async with world.agent() as agent:
        await world.until(lambda: world.pool.updates)
        (update,) = world.pool.updates
        assert update.uid == shows
        assert b'away="yes"' in update.volumes[0].files.files[0].content
        await world.until(lambda: agent.records[plain].sandbox)
        await world.client.patch(world.path("plain"), b'{"metadata":{"labels":{"back":"yes"}}}')
        await world.until(lambda: len(world.pool.updates) == 2)
        assert world.pool.updates[1].uid == plain
        assert world.pool.updates[1].labels["back"] == "yes"
        await asyncio.sleep(0.2)
        assert len(world.pool.updates) == 2


async def test_an_agent_that_was_away_adopts_and_starts_nothing_twice(world: World) -> None:
    async with world.agent():
        kept = await world.create("kept")
        ended = await world.create("ended")
        await world.phase("Running", "kept")
        await world.phase("Running", "ended")
    # Nobody is there: one is deleted, one is made.
    await world.delete("ended")
    made = await world.create("made")
    async with world.agent() as agent:
        await world.phase("Running", "made")
        await world.when(lambda pod: pod is None, "ended")
        # The first two were started side by side, in any order.
        assert set(world.pool.creates[:2]) == {kept, ended}
        assert world.pool.creates[2:] == [made]
        assert set(world.pool.sandboxes) == {kept, made}
        kept_record = agent.records[kept]
        assert kept_record.sandbox is not None
        assert world.pool.updates == []


async def test_a_deletion_found_at_the_start_gets_what_is_left_and_is_asked_once(
    world: World,
) -> None:
    world.pool.ends_by_itself = False
    async with world.agent():
        uid = await world.create(terminationGracePeriodSeconds=60)
        await world.phase("Running")
    begun = time.monotonic()
    await world.delete()
    await asyncio.sleep(2.1)
    async with world.agent():
        await world.until(lambda: world.pool.deletes)
        ((_, grace),) = world.pool.deletes
        assert grace is not None
        # The API server's clock tells whole seconds.
        assert 58 - (time.monotonic() - begun) <= grace < 60
        await asyncio.sleep(1.1)
        world.pool.tell(world.pool.sandboxes[uid])
        await asyncio.sleep(0.2)
        assert len(world.pool.deletes) == 1
        world.pool.end(uid)
        await world.when(lambda pod: pod is None)


async def test_a_sandbox_that_the_pool_lost_fails_its_pod(world: World) -> None:
    async with world.agent():
        uid = await world.create()
        await world.phase("Running")
        world.pool.lose(uid)
        pod = await world.phase("Failed")
        assert pod["status"]["reason"] == "SandboxLost"
        assert world.pool.creates == [uid]


async def test_a_pool_that_seems_to_have_lost_all_is_doubted_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vknode.agent.app.Losses", partial(Losses, settle=0.2, doubt=6.0))
    world.config = replace(world.config, deletion=DeletionConfig(0.3, 1))
    with capture_logs() as lines:
        async with world.agent() as agent:
            uids = []
            for name in ("a", "b", "c"):
                uids.append(await world.create(name))
                await world.phase("Running", name)
            # The pool was started on an empty folder, and then on the right one.
            there = dict(world.pool.sandboxes)
            world.pool.sandboxes.clear()
            world.pool.tell_all()
            # Not by the API server, which may take longer for an event than the doubt lasts.
            await world.until(
                lambda: any(line["event"] == "sandbox_loss_doubted" for line in lines)
            )
            world.pool.sandboxes.update(there)
            world.pool.tell_all()
            await world.until(lambda: all(agent.records[uid].memory.gone is False for uid in uids))
            await asyncio.sleep(6.2)
            async with asyncio.timeout(PATIENCE):
                while not await node_events(world, "SandboxLossDoubted"):
                    await asyncio.sleep(0.05)
            for name in ("a", "b", "c"):
                pod = await world.get(name)
                assert pod is not None
                assert pod["status"]["phase"] == "Running"
            assert not world.pool.deletes
            # This time they stay away: after the doubt the Pods are told as lost.
            world.pool.sandboxes.clear()
            world.pool.tell_all()
            for name in ("a", "b", "c"):
                pod = await world.phase("Failed", name)
                assert pod["status"]["reason"] == "SandboxLost"


async def test_orphans_are_collected_after_two_looks_and_a_question(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vknode.agent.app.OrphanRule", partial(OrphanRule, again_after=0.5))
    async with world.agent():
        orphan = await world.create("orphan")
        await world.phase("Running", "orphan")
        kept = await world.create("kept")
        await world.phase("Running", "kept")
    await world.delete("orphan", grace=0)
    somebody_elses = status_pb2.Sandbox(uid="x", cell=world.node, owner="another agent")
    world.pool.sandboxes["x"] = somebody_elses
    async with world.agent():
        await world.until(lambda: orphan not in world.pool.sandboxes)
        assert set(world.pool.sandboxes) == {kept, "x"}


async def test_the_brake_keeps_sandboxes_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vknode.agent.app.OrphanRule", partial(OrphanRule, again_after=0.2))
    world.config = replace(world.config, deletion=DeletionConfig(0.3, 1))
    async with world.agent():
        for name in ("a", "b", "c"):
            await world.create(name)
            await world.phase("Running", name)
    for name in ("a", "b", "c"):
        await world.delete(name, grace=0)
    async with world.agent() as agent:
        await world.until(lambda: agent.metrics.value(BRAKED_SANDBOXES, "az1") == 3)
        assert len(world.pool.sandboxes) == 3
        assert not world.pool.deletes
        events = msgspec.json.decode(await world.client.get("/api/v1/namespaces/default/events"))[
            "items"
        ]
        async with asyncio.timeout(PATIENCE):
            while not any(
                event["reason"] == "SandboxDeletionBraked"
                and event["involvedObject"]["name"] == world.node
                for event in events
            ):
                await asyncio.sleep(0.1)
                events = msgspec.json.decode(
                    await world.client.get("/api/v1/namespaces/default/events")
                )["items"]


async def test_forty_at_once(world: World, patient: None) -> None:
    async with world.agent() as agent:
        before = agent._client.stats.requests.get("PATCH", 0)
        names = [f"p{number}" for number in range(40)]
        await asyncio.gather(*(world.create(name) for name in names))
        for name in names:
            await world.phase("Running", name)
        assert len(set(world.pool.creates)) == len(world.pool.creates) == 40
        assert agent._client.stats.requests["PATCH"] - before == 40
        await asyncio.gather(*(world.delete(name) for name in names))
        for name in names:
            await world.when(lambda pod: pod is None, name)
        assert not world.pool.sandboxes
        await world.until(lambda: not agent.records)
