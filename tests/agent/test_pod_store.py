"""The Pod index: UIDs, names that come again, old news, and how sure a disappearance is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.agent.pods import pod
from vknode.agent.pod_store import Change, Gone, PodStore
from vknode.kube.models import ObjectKey


def key(uid: str, name: str = "web") -> ObjectKey:
    return ObjectKey("default", name, uid)


def test_found_by_uid_node_and_name() -> None:
    store = PodStore()
    assert store.upsert(pod("u1")) == (Change.NEW, None)
    found = store.by_name("default", "web")
    assert found is not None
    assert found.uid == "u1"
    assert [p.uid for p in store.on_node("cell-1")] == ["u1"]
    assert not store.on_node("cell-2")


def test_an_older_state_changes_nothing() -> None:
    store = PodStore()
    store.upsert(pod("u1", version=10, labels={"a": "new"}))
    assert store.upsert(pod("u1", version=9))[0] is Change.STALE
    kept = store.get("u1")
    assert kept is not None
    assert kept.metadata.labels == {"a": "new"}


def test_numbers_decide_not_text() -> None:
    store = PodStore()
    store.upsert(pod("u1", version=9))
    assert store.upsert(pod("u1", version=10))[0] is Change.CHANGED


def test_same_name_with_another_uid_says_that_the_first_is_gone() -> None:
    store = PodStore()
    store.upsert(pod("u1"))
    assert store.upsert(pod("u2", version=5)) == (Change.NEW, "u1")
    assert "u1" not in store
    named = store.by_name("default", "web")
    assert named is not None
    assert named.uid == "u2"


def test_vanished_then_recreated_is_certain() -> None:
    store = PodStore()
    store.upsert(pod("u1"))
    result = store.delete(key("u1"), None)
    assert result is not None
    assert result[0] is Gone.VANISHED
    assert "u1" in store.vanished
    assert store.upsert(pod("u2", version=7)) == (Change.NEW, "u1")


def test_vanished_and_back_is_as_if_nothing_happened() -> None:
    store = PodStore()
    store.upsert(pod("u1", version=3))
    store.delete(key("u1"), None)
    assert store.upsert(pod("u1", version=3))[0] is Change.NEW
    assert not store.vanished


def test_a_deleted_event_is_certain_and_reported_once() -> None:
    store = PodStore()
    store.upsert(pod("u1"))
    last = pod("u1", version=8)
    assert store.delete(key("u1"), last) == (Gone.GONE, last)
    assert store.delete(key("u1"), last) is None


def test_the_answer_to_a_write_never_brings_a_pod_back() -> None:
    store = PodStore()
    store.upsert(pod("u1"))
    store.delete(key("u1"), pod("u1", version=8))
    assert store.refresh(pod("u1", version=9)) is False
    assert len(store) == 0


def test_deleting_an_old_uid_leaves_the_new_pod_of_that_name() -> None:
    store = PodStore()
    store.upsert(pod("u1"))
    store.upsert(pod("u2", version=4))
    store.delete(key("u1"), pod("u1", version=5))
    found = store.by_name("default", "web")
    assert found is not None
    assert found.uid == "u2"


operations = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "deleted", "vanished", "refresh"]),
        st.sampled_from(["u1", "u2", "u3", "u4"]),
        st.integers(1, 30),
    ),
    max_size=40,
)
NAMES = {"u1": "a", "u2": "a", "u3": "b", "u4": "b"}
NODES = {"u1": "n1", "u2": "n2", "u3": "n1", "u4": ""}


@given(operations)
def test_the_indexes_always_agree(steps: list[tuple[str, str, int]]) -> None:
    store = PodStore()
    for step, uid, version in steps:
        state = pod(uid, name=NAMES[uid], node=NODES[uid], version=version)
        if step == "upsert":
            store.upsert(state)
        elif step == "refresh":
            store.refresh(state)
        else:
            store.delete(key(uid, NAMES[uid]), state if step == "deleted" else None)
        everything = list(store)
        assert len({(p.namespace, p.name) for p in everything}) == len(everything) == len(store)
        for one in everything:
            assert store.get(one.uid) is one
            assert store.by_name(one.namespace, one.name) is one
            assert one in store.on_node(one.node)
            assert one.uid not in store.vanished
        assert sum(len(store.on_node(n)) for n in ("n1", "n2", "")) == len(store)


@given(st.permutations(range(1, 9)))
def test_whatever_the_order_the_newest_state_stays(versions: list[int]) -> None:
    store = PodStore()
    for version in versions:
        store.upsert(pod("u1", version=version))
    kept = store.get("u1")
    assert kept is not None
    assert kept.metadata.resource_version == "8"
