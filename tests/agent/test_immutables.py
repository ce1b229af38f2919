"""What is remembered of objects that can never change, and for whom."""

from __future__ import annotations

from typing import Any

from vknode.agent.immutables import Immutables
from vknode.agent.reference_index import RefKey
from vknode.translate.facts import Missing

KEY = RefKey("secrets", "default", "s")
GONE = Missing('secrets "s" not found')


def obj(value: str, immutable: bool = True) -> dict[str, Any]:
    return {"data": {"k": value}, "immutable": immutable}


def test_who_was_given_it_goes_on_with_it_and_nobody_else() -> None:
    known = Immutables()
    assert known.settle("a", KEY, obj("1")) == obj("1")
    assert known.settle("a", KEY, GONE) == obj("1")
    assert known.settle("b", KEY, GONE) is GONE
    refused = Missing("not allowed", not_found=False)
    assert known.settle("a", KEY, refused) is refused


def test_what_may_change_is_not_remembered() -> None:
    known = Immutables()
    known.settle("a", KEY, obj("1", immutable=False))
    assert known.settle("a", KEY, GONE) is GONE
    known.settle("a", KEY, obj("1"))
    known.settle("a", KEY, obj("2", immutable=False))  # deleted and made anew
    assert known.settle("a", KEY, GONE) is GONE


def test_it_is_forgotten_with_its_last_pod() -> None:
    known = Immutables()
    for uid in ("a", "b"):
        known.settle(uid, KEY, obj("1"))
    known.forget("a")
    assert known.settle("b", KEY, GONE) == obj("1")
    known.forget("b")
    known.forget("b")
    assert len(known) == 0
    assert known.settle("b", KEY, GONE) is GONE


def test_one_that_was_made_anew_counts_as_it_is_now() -> None:
    known = Immutables()
    for uid in ("a", "b"):
        known.settle(uid, KEY, obj("1"))
    known.settle("a", KEY, obj("2"))
    assert known.settle("b", KEY, GONE) == obj("2")


def test_memory_has_a_bound() -> None:
    known = Immutables(max_bytes=100)
    other = RefKey("configmaps", "default", "c")
    known.settle("a", KEY, obj("x" * 60))
    known.settle("a", other, obj("y" * 60))
    assert known.settle("a", other, GONE) is GONE
    known.forget("a")
    known.settle("a", other, obj("y" * 60))
    assert known.settle("a", other, GONE) == obj("y" * 60)


def test_no_content_is_shown() -> None:
    known = Immutables()
    known.settle("a", KEY, obj("s3cret"))
    assert "s3cret" not in repr(known._copies)
