"""The whole Pod side in memory: users, the pool and restarts of the agent in any order.

Whatever happens: no UID is started twice, no object goes before the pool has said that its
sandbox is gone, and when all is deleted nothing is left, neither in the pool nor in memory.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.fake_pool import FakePool
from tests.agent.pods import pod_json
from vknode.agent.admission import Rejection
from vknode.agent.claims import Claims
from vknode.agent.event_correlator import ObjectRef
from vknode.agent.losses import Losses
from vknode.agent.metrics import AgentMetrics
from vknode.agent.pod_record import Placement, PodRecord
from vknode.agent.pod_report import PodReport
from vknode.agent.pod_steps import PodSteps
from vknode.agent.pod_store import PodObject, PodStore
from vknode.agent.privileges import Privileges
from vknode.agent.reference_index import Uses
from vknode.agent.references import References
from vknode.agent.spec_builder import SpecBuilder
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync import PodSync
from vknode.kube.errors import ApiError
from vknode.kube.models import ObjectKey
from vknode.translate.facts import NodeFacts, rfc3339

CELL = "cell-1"


class Api:
    """Objects by name, with the API server's rules that matter here."""

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.objects: dict[str, dict[str, Any]] = {}
        self.numbers = itertools.count(1)
        self.handler: PodSync | None = None
        self.forced: set[str] = set()
        self.patches = 0
        # Told at the end: a worker survives whatever is raised into it.
        self.violations: list[str] = []
        # Takes nothing of a status but the phase, as a server would that knows no other field.
        self.stubborn = False

    def create(self, name: str) -> None:
        if name in self.objects:
            return
        number = next(self.numbers)
        self.objects[name] = pod_json(f"uid-{number}", name=name, node=CELL, version=number)
        self.tell(name)

    def tell(self, name: str) -> None:
        """A watch event with the present state."""
        if self.handler is not None and name in self.objects:
            self.handler.upsert(PodObject(msgspec.json.encode(self.objects[name])))

    def changed(self, name: str) -> None:
        self.objects[name]["metadata"]["resourceVersion"] = str(next(self.numbers))

    def user_deletes(self, name: str) -> None:
        pod = self.objects.get(name)
        if pod is None or "deletionTimestamp" in pod["metadata"]:
            return
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            self.remove(name)
            return
        pod["metadata"]["deletionTimestamp"] = "2099-01-01T00:00:00Z"
        pod["metadata"]["deletionGracePeriodSeconds"] = 30
        self.changed(name)
        self.tell(name)

    def force_delete(self, name: str) -> None:
        if name in self.objects:
            self.forced.add(self.objects[name]["metadata"]["uid"])
            self.remove(name)

    def remove(self, name: str) -> None:
        self.changed(name)
        pod = self.objects.pop(name)
        if self.handler is not None:
            meta = pod["metadata"]
            key = ObjectKey(meta["namespace"], name, meta["uid"])
            self.handler.deleted(key, PodObject(msgspec.json.encode(pod)))

    # -- what the agent calls

    async def patch_status(self, path: str, body: bytes, **_: Any) -> bytes:
        await asyncio.sleep(0)
        name = path.rpartition("/")[2]
        self.patches += 1
        patch = msgspec.json.decode(body)
        pod = self.objects.get(name)
        if pod is None:
            raise ApiError(404, "NotFound", name)
        if pod["metadata"]["uid"] != patch["metadata"]["uid"]:
            raise ApiError(409, "Conflict", name)
        if self.stubborn:
            pod["status"]["phase"] = patch["status"].get("phase", pod["status"]["phase"])
        else:
            merge(pod["status"], patch["status"])
        self.changed(name)
        answer = msgspec.json.encode(pod)
        self.tell(name)
        return answer

    async def delete(self, path: str, *, uid: str | None = None, **_: Any) -> bytes:
        await asyncio.sleep(0)
        name = path.rpartition("/")[2]
        pod = self.objects.get(name)
        if pod is None:
            raise ApiError(404, "NotFound", name)
        if pod["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", name)
        if uid in self.pool.sandboxes:
            self.violations.append(f"{uid} goes while its sandbox is there")
        self.remove(name)
        return b"{}"

    async def get(self, path: str, **_: Any) -> bytes:
        raise ApiError(404, "NotFound", path)


def merge(status: dict[str, Any], patch: dict[str, Any]) -> None:
    """What matters of a strategic merge: conditions by type, null deletes, lists are replaced."""
    for name, value in patch.items():
        if name == "conditions":
            by_type = {one["type"]: dict(one) for one in status.get(name, ())}
            for one in value:
                merged = by_type.setdefault(one["type"], {}) | one
                by_type[one["type"]] = {k: v for k, v in merged.items() if v is not None}
            status[name] = list(by_type.values())
        elif value is None:
            status.pop(name, None)
        elif isinstance(value, list):
            status[name] = [one for one in value if "$patch" not in one]
        else:
            status[name] = value


class NoReferences(References):
    def __init__(self) -> None:
        super().__init__(_Nobody())


class _Nobody:
    async def get(self, path: str, **_: Any) -> bytes:
        raise AssertionError(f"{path} was asked for")

    async def create(self, path: str, body: bytes, **_: Any) -> bytes:
        raise AssertionError(f"{path} was asked for")


class Events:
    """Keeps their reasons."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None:
        self.reasons.append(reason)


class Anybody:
    """Admits every Pod."""

    async def admit(
        self, record: PodRecord, pod: dict[str, Any], place: Placement
    ) -> Rejection | None:
        record.admitted = True
        return None

    def taken(self, record: PodRecord, pod: PodObject) -> None:
        pass

    def left(self, record: PodRecord) -> None:
        pass


class NoRefresher:
    def sent(self, uid: str, node: str, uses: Uses, *, in_want: bool) -> bool:
        return False

    def waits(self, uid: str, node: str, uses: Uses) -> bool:
        return False

    def refused(self, uid: str, node: str, uses: Uses) -> None:
        pass

    def adopted(self, pod: PodObject) -> None:
        pass

    def soon(self, uid: str) -> None:
        pass

    def forget(self, uid: str) -> None:
        pass


class AgentInMemory:
    """The Pod side, wired as `app.py` does it."""

    def __init__(self, api: Api, pool: FakePool, *others: FakePool) -> None:
        """`others` are pools that have no Node."""
        self.api = api
        self.store = PodStore()
        self.records: dict[str, PodRecord] = {}
        self.link = link = pool.link("az1")
        self.links = [link, *(one.link(f"other-{n}") for n, one in enumerate(others))]
        self.metrics = metrics = AgentMetrics()
        place = Placement(CELL, "node-uid", link, NodeFacts(CELL, ("127.0.0.1",)))
        report = PodReport(self.store, self.records, lambda node: place, metrics.timings)
        self.writer = StatusWriter(api, report)
        report.on_repeat(self.writer.mark)
        self.events = Events()
        claims = Claims(self.events, metrics, lambda node: place)
        steps = PodSteps(
            client=api,
            store=self.store,
            place=lambda node: place,
            builder=SpecBuilder(NoReferences(), Privileges()),
            admitter=Anybody(),
            refresher=NoRefresher(),
            writer=self.writer,
            events=self.events,
            metrics=metrics,
            owner="us",
            claims=claims,
        )
        self.sync = PodSync(
            store=self.store,
            records=self.records,
            links=self.links,
            place=lambda node: place,
            steps=steps,
            admitter=Anybody(),
            refresher=NoRefresher(),
            writer=self.writer,
            metrics=metrics,
            owner="us",
            losses=Losses(lambda total: total, settle=0.0),
            claims=claims,
            workers=3,
        )
        self.tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self.sync.run())]
        for one in self.links:
            one.serve(self.sync)
            self.tasks.append(asyncio.create_task(one.run()))
        api.handler = self.sync
        for name in list(api.objects):
            api.tell(name)
        self.sync.synced()

    async def stop(self) -> None:
        self.api.handler = None
        for task in self.tasks:
            task.cancel()
        results = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.writer.close()
        for link in self.links:
            await link.close()
        for result in results:
            assert isinstance(result, asyncio.CancelledError), result


async def test_a_server_that_drops_what_we_write_is_not_flooded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the clock shows: what was dropped is dated anew each time."""
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr("vknode.agent.pod_report.rfc3339", lambda _: rfc3339(next(seconds)))
    monkeypatch.setattr("vknode.agent.pod_report.REPEAT_AFTER", 600.0)
    pool = FakePool([CELL])
    api = Api(pool)
    api.stubborn = True
    agent = AgentInMemory(api, pool)
    api.create("a")
    async with asyncio.timeout(60):
        while api.objects["a"]["status"]["phase"] != "Running":
            await asyncio.sleep(0.005)
    for _ in range(50):
        api.changed("a")
        api.tell("a")
        await asyncio.sleep(0.002)
    await agent.stop()
    assert api.patches <= 3


async def play(steps: list[tuple[str, str]]) -> None:
    pool = FakePool([CELL])
    pool.starts_by_itself = pool.ends_by_itself = False
    api = Api(pool)
    agent = AgentInMemory(api, pool)
    ended_by_nobody: set[str] = set()
    for step, name in steps:
        if step == "create":
            api.create(name)
        elif step == "delete":
            api.user_deletes(name)
        elif step == "force":
            api.force_delete(name)
        elif step == "echo":
            api.tell(name)
        elif step == "stale":
            for uid in list(agent.records):
                agent.sync.refresh(uid)
        elif step == "start":
            for uid, sandbox in list(pool.sandboxes.items()):
                if not sandbox.deleting and not sandbox.network_ready:
                    pool.start(uid)
        elif step == "end":
            for uid, sandbox in list(pool.sandboxes.items()):
                if sandbox.deleting:
                    pool.end(uid)
        elif step == "restart":
            await agent.stop()
            # Objects that go while nobody looks leave orphans: they are another test's.
            agent = AgentInMemory(api, pool)
        for _ in range(3):
            await asyncio.sleep(0)
    try:
        async with asyncio.timeout(60):
            while api.objects or pool.sandboxes or agent.records:
                for name in list(api.objects):
                    api.user_deletes(name)
                for uid, sandbox in list(pool.sandboxes.items()):
                    if sandbox.deleting:
                        pool.end(uid)
                    elif uid in ended_by_nobody:
                        del pool.sandboxes[uid]
                await asyncio.sleep(0.001)
                known = {pod["metadata"]["uid"] for pod in api.objects.values()}
                # Force-deleted just before a restart: nobody alive saw the object go.
                ended_by_nobody = {
                    uid for uid in pool.sandboxes if uid not in known and uid not in agent.records
                } & api.forced
    finally:
        await agent.stop()
    assert not api.violations
    assert len(pool.creates) == len(set(pool.creates)), "a UID was started twice"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["create", "create", "start", "delete", "force", "end", "echo", "stale", "restart"]
        ),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=30,
)


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_any_order_leaves_nothing_and_starts_nothing_twice(steps: list[tuple[str, str]]) -> None:
    asyncio.run(play(steps))
