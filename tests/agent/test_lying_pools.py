"""Lies of pools in any order with everything else: no status of a Pod is ever made of one.

`az1` is the Pods' pool, and now and then names another cell; a second pool has none of them, and
says of all of them what it likes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent.fake_pool import FakePool
from tests.agent.test_sync_any_order import CELL, AgentInMemory, Api
from vknode.pool.client import SandboxesUpdate
from vknode.pool.v1 import status_pb2

LIE = "6.6.6.6"
LYING_REASON = "Lied"


class Watched(Api):
    """Looks at each status that is written."""

    async def patch_status(self, path: str, body: bytes, **more: Any) -> bytes:
        if LIE.encode() in body or LYING_REASON.encode() in body:
            self.violations.append(f"{path}: a lie was written: {body!r}")
        return await super().patch_status(path, body, **more)


def lie(uid: str, cell: str, state: status_pb2.SandboxState.ValueType) -> status_pb2.Sandbox:
    sandbox = status_pb2.Sandbox(
        uid=uid, cell=cell, owner="us", state=state, pod_ips=[LIE], network_ready=True
    )
    status = sandbox.containers.add(name="main", image="busybox", container_id="fake://lie")
    status.state.terminated.exit_code = 1
    status.state.terminated.reason = LYING_REASON
    return sandbox


FAILED, RUNNING = status_pb2.SANDBOX_STATE_FAILED, status_pb2.SANDBOX_STATE_RUNNING


def tell(liar: FakePool, pool: FakePool, kind: str, uid: str) -> None:
    event = status_pb2.SandboxEvent(uid=uid, type="Warning", reason=LYING_REASON, message="x")
    match kind:
        case "failed":
            liar._send(SandboxesUpdate(False, [lie(uid, CELL, FAILED)]))
        case "in its cell":
            liar._send(SandboxesUpdate(False, [lie(uid, "cell-9", RUNNING)]))
        case "gone":
            liar._send(SandboxesUpdate(False, [], [lie(uid, CELL, FAILED)]))
        case "event":
            liar._send(SandboxesUpdate(False, [], [], [event]))
        case "snapshot":
            liar._send(SandboxesUpdate(True, [lie(uid, CELL, RUNNING)]))
        case "empty snapshot":
            liar._send(SandboxesUpdate(True, []))
        case "another cell":
            pool._send(SandboxesUpdate(False, [lie(uid, "cell-9", FAILED)]))


KINDS = (
    *("failed", "in its cell", "gone", "event", "snapshot", "empty snapshot"),
    "another cell",
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "start", "delete", "end", "restart", *KINDS]),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=30,
)


async def play(steps: list[tuple[str, str]]) -> None:
    pool, liar = FakePool([CELL]), FakePool(["cell-9"])
    pool.starts_by_itself = pool.ends_by_itself = False
    api = Watched(pool)
    agent = AgentInMemory(api, pool, liar)
    reasons: list[str] = []
    for step, name in steps:
        uid = api.objects[name]["metadata"]["uid"] if name in api.objects else ""
        if step == "create":
            api.create(name)
        elif step == "delete":
            api.user_deletes(name)
        elif step == "start":
            for one, sandbox in list(pool.sandboxes.items()):
                if not sandbox.deleting and not sandbox.network_ready:
                    pool.start(one)
        elif step == "end":
            for one, sandbox in list(pool.sandboxes.items()):
                if sandbox.deleting:
                    pool.end(one)
        elif step == "restart":
            reasons += agent.events.reasons
            await agent.stop()
            agent = AgentInMemory(api, pool, liar)
        elif uid:
            tell(liar, pool, step, uid)
        for _ in range(3):
            await asyncio.sleep(0)
    try:
        async with asyncio.timeout(60):
            while api.objects or pool.sandboxes or agent.records:
                for name in list(api.objects):
                    api.user_deletes(name)
                for one, sandbox in list(pool.sandboxes.items()):
                    if sandbox.deleting:
                        pool.end(one)
                await asyncio.sleep(0.001)
    finally:
        await agent.stop()
    assert not api.violations
    assert LYING_REASON not in reasons + agent.events.reasons
    assert not liar.creates and not liar.deletes and not liar.updates
    assert len(pool.creates) == len(set(pool.creates)), "a UID was started twice"


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_no_lie_becomes_a_status(steps: list[tuple[str, str]]) -> None:
    asyncio.run(play(steps))


async def test_each_lie_is_named() -> None:
    """Or the test above might pass because nobody listens."""
    pool, liar = FakePool([CELL]), FakePool(["cell-9"])
    api = Watched(pool)
    agent = AgentInMemory(api, pool, liar)
    api.create("a")
    async with asyncio.timeout(60):
        while api.objects["a"]["status"]["phase"] != "Running":
            await asyncio.sleep(0.001)
    uid = api.objects["a"]["metadata"]["uid"]
    for kind in KINDS:
        tell(liar, pool, kind, uid)
    counted = agent.metrics.registry.get_sample_value
    name = "vknode_pool_claims_refused_total"
    async with asyncio.timeout(60):
        while (
            counted(name, {"pool": "other-0", "why": "other_pool"}) != 5
            or counted(name, {"pool": "az1", "why": "other_cell"}) != 1
        ):
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    status = api.objects["a"]["status"]
    await agent.stop()
    assert status["phase"] == "Running" and status["podIP"] == "10.9.0.7"
    assert counted(name, {"pool": "other-0", "why": "other_pool"}) == 5
    assert counted(name, {"pool": "az1", "why": "other_cell"}) == 1
    # One of each is told at the Node; the recorder joins what is the same.
    assert agent.events.reasons.count("PoolClaimRefused") == 2
