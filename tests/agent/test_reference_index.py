"""Who has old content, whatever is told first: what a Pod was given, or what there is."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.reference_index import ReferenceIndex, RefKey

KEY = RefKey("secrets", "default", "s")
OTHER = RefKey("configmaps", "default", "c")


def test_a_change_makes_its_users_stale_and_nobody_else() -> None:
    index = ReferenceIndex()
    assert not index.use("a", "n1", {KEY: "5"})
    assert not index.use("b", "n2", {KEY: "5", OTHER: "4"})
    assert not index.use("c", "n1", {OTHER: "4"})
    assert index.observe(KEY, "5", 1) == []
    assert index.observe(OTHER, "4", 1) == []
    assert sorted(index.observe(KEY, "8", 2)) == ["a", "b"]
    index.use("a", "n1", {KEY: "8"})
    assert sorted(index.observe(KEY, "9", 3)) == ["a", "b"]


def test_a_new_version_of_the_same_content_is_no_change() -> None:
    index = ReferenceIndex()
    index.use("a", "n", {KEY: "5"})
    index.observe(KEY, "5", 1)
    assert index.observe(KEY, "6", 1) == []
    index.use("b", "n", {KEY: "6"})
    assert sorted(index.observe(KEY, "7", 2)) == ["a", "b"]


def test_what_was_missing_and_comes_and_what_goes_are_changes() -> None:
    index = ReferenceIndex()
    index.use("a", "n", {KEY: ""})
    assert index.observe(KEY, "3", None) == []
    assert index.observe(KEY, "4", 1) == ["a"]
    index.use("a", "n", {KEY: "4"})
    assert index.observe(KEY, "6", None) == ["a"]
    index.use("a", "n", {KEY: ""})
    assert index.observe(KEY, "7", None) == []
    assert index.observe(KEY, "8", 1) == ["a"]


def test_an_absence_that_nobody_dates_is_seen_once() -> None:
    index = ReferenceIndex()
    index.use("a", "n", {KEY: "4"})
    assert index.observe(KEY, "", None) == ["a"]
    index.use("a", "n", {KEY: ""})
    assert index.observe(KEY, "", None) == []
    assert index.observe(KEY, "5", 1) == ["a"]


def test_a_pod_that_was_given_old_content_is_told_so_at_once() -> None:
    index = ReferenceIndex()
    index.use("a", "n", {KEY: "5"})
    index.observe(KEY, "9", 2)
    assert index.use("b", "n", {KEY: "5"})
    assert not index.use("b", "n", {KEY: "9"})
    assert not index.use("b", "n", {KEY: "12"})


def test_users_leave() -> None:
    index = ReferenceIndex()
    index.use("a", "n1", {KEY: "5", OTHER: "1"})
    index.use("b", "n2", {KEY: "5"})
    assert {index.a_node(KEY, turn) for turn in range(4)} == {"n1", "n2"}
    index.use("a", "n1", {OTHER: "1"})
    assert index.a_node(KEY, 0) == "n2"
    index.forget(KEY)
    assert KEY in index  # still used
    assert set(index.drop("b")) == {KEY}
    assert not index.is_used(KEY)
    assert index.a_node(KEY, 0) is None
    index.forget(KEY)
    assert KEY not in index
    assert index.drop("b") == ()


@given(st.lists(st.sampled_from(["write", "touch", "delete", "read", "see", "see"]), max_size=40))
def test_after_all_has_been_seen_who_is_stale_is_who_has_old_content(steps: list[str]) -> None:
    """The object changes; a Pod reads it at any time; a watch sees the states in order, late."""
    index = ReferenceIndex()
    versions = itertools.count(1)
    history: list[tuple[str, int | None]] = [(str(next(versions)), 0)]
    content = itertools.count(1)
    seen = 0
    index.use("pod", "n", {KEY: history[-1][0]})
    has: int | None = 0
    stale = False

    def see() -> None:
        nonlocal seen, stale
        if seen < len(history):
            if index.observe(KEY, *history[seen]):
                stale = True
            seen += 1

    for step in steps:
        version = str(next(versions))
        now = history[-1][1]
        if step == "write":
            history.append((version, next(content)))
        elif step == "touch" and now is not None:
            history.append((version, now))
        elif step == "delete" and now is not None:
            history.append((version, None))
        elif step == "read":
            has = now
            given_version = "" if now is None else history[-1][0]
            stale = index.use("pod", "n", {KEY: given_version})
        elif step == "see":
            see()
    while seen < len(history):
        see()
    if has != history[-1][1]:
        assert stale


def test_who_needs_an_object_only_for_restarts_is_told_of_changes_too() -> None:
    index = ReferenceIndex()
    index.use("u", "n", {}, {KEY: "5"})
    assert not index.is_needed(KEY)
    index.observe(KEY, "5", 1)
    assert index.observe(KEY, "6", 2) == ["u"]
    index.use("v", "n", {KEY: "6"})
    assert index.is_needed(KEY)
    index.drop("v")
    assert index.is_used(KEY) and not index.is_needed(KEY)
