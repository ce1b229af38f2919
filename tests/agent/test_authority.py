"""A pool speaks for what it was given, and for nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.agent.fake_pool import FakePool
from vknode.agent.authority import Given, Wrong, judge, judge_answer
from vknode.agent.claims import REMEMBERED, Claims
from vknode.agent.event_correlator import ObjectRef
from vknode.agent.metrics import AgentMetrics
from vknode.agent.pod_record import Placement, PodRecord
from vknode.pool.v1 import status_pb2
from vknode.translate.facts import NodeFacts

NAMES = st.sampled_from(["az1", "az2", "az3", ""])
UIDS = st.sampled_from(["u1", "u2", ""])


@given(NAMES, NAMES, NAMES, NAMES)
def test_only_the_given_pool_is_believed_and_only_of_the_given_cell(
    pool: str, cell: str, of_pool: str, of_cell: str
) -> None:
    wrong = judge(pool, cell, Given(of_pool, of_cell))
    assert (wrong is None) == ((pool, cell) == (of_pool, of_cell))
    assert (wrong is Wrong.OTHER_POOL) == (pool != of_pool)


@given(UIDS, UIDS, NAMES, NAMES, NAMES)
def test_an_answer_is_also_about_what_was_asked(
    asked: str, uid: str, pool: str, cell: str, of_cell: str
) -> None:
    given_to = Given(pool, of_cell)
    wrong = judge_answer(asked, uid, pool, cell, given_to)
    assert (wrong is None) == (asked == uid and cell == of_cell)
    assert (wrong is Wrong.OTHER_SANDBOX) == (asked != uid)


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def event(self, ref: ObjectRef, node: str, type: str, reason: str, message: str) -> None:
        self.told.append((node, reason, message))


def test_a_refusal_is_named_once_and_counted_each_time() -> None:
    link = FakePool(["c1"]).link("az1")
    place = Placement("node-1", "node-uid", link, NodeFacts("c1", ("127.0.0.1",)))
    events, metrics = Recorder(), AgentMetrics()
    claims = Claims(events, metrics, lambda node: place if node == "node-1" else None)
    record = PodRecord("u1", "node-1", link, "c1")
    lie = status_pb2.Sandbox(uid="u1", cell="c2", name="the-secret-name")
    with capture_logs() as logs:
        for _ in range(3):
            assert not claims.believes("az2", lie, record)
        lie.cell = "c1"
        assert claims.believes("az1", lie, record)
        claims.foreign_cell("az2", lie)
    assert [(entry["event"], entry["pool"], entry["why"]) for entry in logs] == [
        ("pool_claim_refused", "az2", "other_pool"),
        ("pool_claim_refused", "az2", "foreign_cell"),
    ]
    ((node, reason, message),) = events.told
    assert (node, reason) == ("node-1", "PoolClaimRefused")
    for word in ("u1", "pool az1, cell c1", "pool az2"):
        assert word in message
    assert "the-secret-name" not in str(logs) + message
    counted = metrics.registry.get_sample_value
    labels = {"pool": "az2", "why": "other_pool"}
    assert counted("vknode_pool_claims_refused_total", labels) == 3


def test_a_claim_on_a_node_that_is_not_there_yet_has_its_event_later() -> None:
    link = FakePool([]).link("az1")
    place = Placement("node-1", "node-uid", link, NodeFacts("c1", ("127.0.0.1",)))
    there: dict[str, Placement] = {}
    events = Recorder()
    claims = Claims(events, AgentMetrics(), there.get)
    with capture_logs() as logs:
        for _ in range(2):
            claims.refuse("az2", Wrong.CELL_TAKEN, "c1", "it is az1's", "node-1")
        assert events.told == []
        there["node-1"] = place
        for _ in range(2):
            claims.refuse("az2", Wrong.CELL_TAKEN, "c1", "it is az1's", "node-1")
    assert len(logs) == 1
    assert events.told == [("node-1", "PoolClaimRefused", "it is az1's")]


def test_what_is_remembered_of_liars_is_bounded() -> None:
    link = FakePool([]).link("az1")
    claims = Claims(None, AgentMetrics(), lambda node: None)
    with capture_logs() as logs:
        for number in range(REMEMBERED + 10):
            record = PodRecord(f"u{number}", "n", link, "c")
            claims.sandbox("az2", Wrong.OTHER_POOL, record, "lies")
    assert len(logs) == REMEMBERED + 10
    assert len(claims._told) == REMEMBERED
