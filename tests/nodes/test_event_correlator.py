"""Repetition becomes a count, a flood becomes a trickle, as with client-go."""

from __future__ import annotations

import itertools

from vknode.agent.event_correlator import COMBINED, EventCorrelator, ObjectRef, clip

POD = ObjectRef("Pod", "default", "web", "u1")


def correlator() -> EventCorrelator:
    numbers = itertools.count()
    return EventCorrelator(make_name=lambda stem: f"{stem}.{next(numbers)}")


def test_the_same_again_raises_the_count() -> None:
    c = correlator()
    first = c.observe(POD, "n", "Warning", "BackOff", "again", 100)
    second = c.observe(POD._replace(resource_version="9"), "n", "Warning", "BackOff", "again", 110)
    assert first is second and first is not None
    assert (first.count, first.first, first.last) == (2, 100, 110)


def test_another_pod_of_the_same_name_has_its_own_event() -> None:
    c = correlator()
    first = c.observe(POD, "n", "Normal", "Started", "m", 0)
    assert c.observe(POD._replace(uid="u2"), "n", "Normal", "Started", "m", 0) is not first


def test_many_messages_of_one_reason_are_combined() -> None:
    c = correlator()
    records = [c.observe(POD, "n", "Warning", "Failed", f"m{i}", i) for i in range(14)]
    names = {r.name for r in records if r}
    assert len(names) == 10
    last = records[-1]
    assert last is not None and last.message == f"{COMBINED}m13" and last.count == 5


def test_an_object_has_25_events_and_then_one_in_five_minutes() -> None:
    c = correlator()
    written = sum(c.observe(POD, "n", "Normal", "R", "same", 0) is not None for _ in range(40))
    assert written == 25
    assert c.dropped == 15
    assert c.observe(POD, "n", "Normal", "R", "same", 301) is not None
    assert c.observe(POD, "n", "Normal", "R", "same", 302) is None
    # other objects are not concerned
    assert c.observe(POD._replace(name="b", uid="b"), "n", "Normal", "R", "same", 302)


def test_long_messages_are_cut_between_characters() -> None:
    text = clip("ä" * 2000)
    assert len(text.encode()) <= 1024 and text.endswith("...") and "�" not in text
