"""Places that are few go round: bounded in all and for each, and nobody waits for ever."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.kubeletapi.turns import QueueFullError, Turns


def turns(
    places: int = 2, each: int = 1, waiting: int = 10, waiting_each: int = 4
) -> Turns[str, int]:
    return Turns(places=places, each=each, waiting=waiting, waiting_each=waiting_each)


def test_what_is_beyond_an_askers_share_waits() -> None:
    t = turns()
    assert t.ask(1, "a")
    assert not t.ask(2, "a")
    assert t.ask(3, "b")
    assert t.leave(3) == []
    assert t.leave(1) == [2]


def test_who_asks_seldom_waits_for_one_turn_of_the_others() -> None:
    t = turns(places=1, waiting=100, waiting_each=50)
    assert t.ask(0, "busy")
    for number in range(1, 40):
        t.ask(number, "busy")
    t.ask(100, "seldom")
    assert t.leave(0) == [1], "it had asked before"
    assert t.leave(1) == [100]
    assert t.leave(100) == [2]


def test_too_many_do_not_wait() -> None:
    t = turns(places=1, waiting=3, waiting_each=2)
    assert t.ask(0, "a")
    for number in (1, 2):
        t.ask(number, "a")
    with pytest.raises(QueueFullError):
        t.ask(3, "a")
    t.ask(4, "b")
    with pytest.raises(QueueFullError):
        t.ask(5, "c")
    assert t.leave(1) == [], "it gave up waiting"
    assert not t.ask(6, "c")


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "leave", "give up"]), st.sampled_from("abcd")), max_size=80
)


@given(STEPS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 8), st.integers(0, 4))
def test_bounds_hold_and_no_place_is_left_empty(
    steps: list[tuple[str, str]], places: int, each: int, waiting: int, waiting_each: int
) -> None:
    t = turns(places, each, waiting, waiting_each)
    asker: dict[int, str] = {}
    going: list[int] = []
    queued: list[int] = []
    for ticket, (step, who) in enumerate(steps):
        chosen = going if step == "leave" else queued
        mine = [one for one in chosen if asker[one] == who]
        if step == "ask":
            asker[ticket] = who
            try:
                (going if t.ask(ticket, who) else queued).append(ticket)
            except QueueFullError:
                of_who = [one for one in queued if asker[one] == who]
                assert len(queued) == waiting or len(of_who) == waiting_each
        elif mine:
            chosen.remove(mine[0])
            for other in t.leave(mine[0]):
                # Each asker's in the order of asking.
                assert other == next(one for one in queued if asker[one] == asker[other])
                queued.remove(other)
                going.append(other)
        shares = Counter(asker[one] for one in going)
        assert len(going) <= places
        assert all(count <= each for count in shares.values())
        assert len(queued) <= waiting
        if len(going) < places:
            assert all(shares[asker[one]] == each for one in queued)
    done: deque[int] = deque(going)
    while done:
        more = t.leave(done.popleft())
        done += more
        queued = [one for one in queued if one not in more]
    assert queued == [], "everybody has had a turn"
