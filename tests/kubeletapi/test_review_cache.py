"""What was answered is remembered so long, and no more than so much of it."""

from hypothesis import given
from hypothesis import strategies as st

from vknode.kubeletapi.review_cache import ReviewCache


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_is_good_for_its_time() -> None:
    clock = Clock()
    cache: ReviewCache[str, bool] = ReviewCache(10, clock)
    cache.put("a", True, 5.0)
    cache.put("never", True, 0.0)
    assert cache.get("never") is None
    clock.now += 4.9
    assert cache.get("a") is True
    clock.now += 0.1
    assert cache.get("a") is None
    assert len(cache) == 0


def test_a_no_is_an_answer() -> None:
    cache: ReviewCache[str, bool] = ReviewCache(10, Clock())
    cache.put("a", False, 5.0)
    assert cache.get("a") is False


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: ReviewCache[str, int] = ReviewCache(2, Clock())
    cache.put("a", 1, 5.0)
    cache.put("b", 2, 5.0)
    assert cache.get("a") == 1
    cache.put("c", 3, 5.0)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 8), st.integers(0, 99), st.integers(0, 20)),
        st.tuples(st.just("get"), st.integers(0, 8), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.just(0), st.integers(0, 10)),
    ),
    max_size=80,
)


@given(st.integers(1, 5), STEPS)
def test_no_answer_but_the_last_one_and_in_its_time(
    limit: int, steps: list[tuple[str, int, int, int]]
) -> None:
    """Against a plain dictionary without a limit: the cache may know less, never something else."""
    clock = Clock()
    cache: ReviewCache[int, int] = ReviewCache(limit, clock)
    truth: dict[int, tuple[float, int]] = {}
    for what, key, value, seconds in steps:
        if what == "put":
            cache.put(key, value, seconds)
            truth[key] = clock.now + seconds, value
        elif what == "wait":
            clock.now += seconds
        else:
            ends, expected = truth.get(key, (0.0, -1))
            found = cache.get(key)
            assert found is None or (found == expected and clock.now < ends)
        assert len(cache) <= limit


@given(st.lists(st.integers(0, 30), max_size=60))
def test_with_room_nothing_is_forgotten(keys: list[int]) -> None:
    cache: ReviewCache[int, int] = ReviewCache(31, Clock())
    for key in keys:
        cache.put(key, key, 1.0)
    assert all(cache.get(key) == key for key in keys)
