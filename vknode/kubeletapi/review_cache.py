"""Answers that stay good for a while, at most so many of them. Pure: the clock is given."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ReviewCache(Generic[Key, Value]):
    """At most `limit` answers; what was used longest ago goes first.

    `clock` gives seconds and never goes back.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        if limit < 1:
            raise ValueError("a cache has room for at least one answer")
        self._limit = limit
        self._clock = clock
        self._answers: OrderedDict[Key, tuple[float, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Key) -> Value | None:
        """None if there is no answer, or only one that is too old."""
        found = self._answers.get(key)
        if found is None:
            return None
        ends, value = found
        if self._clock() >= ends:
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return value

    def put(self, key: Key, value: Value, seconds: float) -> None:
        """With no time to live it is not kept, and what was there is gone."""
        self._answers.pop(key, None)
        if seconds <= 0:
            return
        self._answers[key] = (self._clock() + seconds, value)
        if len(self._answers) > self._limit:
            self._answers.popitem(last=False)
