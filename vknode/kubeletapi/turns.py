"""Who may go next where places are few: one of many who ask, not the one who asks most. Pure.

A place is had by a ticket, and each ticket is somebody's. At most `places` have one at the same
time, and at most `each` of the same asker; the others wait. A place that becomes free is given to
the asker who has had none for the longest, and of its tickets to the oldest: whoever asks seldom
waits for those before it, and not for all that somebody else has asked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)
Asker = TypeVar("Asker", bound=Hashable)


class QueueFullError(Exception):
    """Too many tickets wait: in all, or of this asker."""


class Turns(Generic[Asker, Ticket]):
    """`waiting` tickets may wait in all, `waiting_each` of one asker."""

    def __init__(self, *, places: int, each: int, waiting: int, waiting_each: int) -> None:
        self._places = places
        self._each = each
        self._waiting = waiting
        self._waiting_each = waiting_each
        self._going: dict[Ticket, Asker] = {}
        self._going_of: Counter[Asker] = Counter()
        # By asker, next one first. Keys of the inner mapping: a set that knows its order.
        self._queues: OrderedDict[Asker, OrderedDict[Ticket, None]] = OrderedDict()
        self._asker: dict[Ticket, Asker] = {}

    def ask(self, ticket: Ticket, asker: Asker) -> bool:
        """Whether it may go at once; else it waits until `leave` names it. Raises
        `QueueFullError`, and then it does not wait."""
        if len(self._going) < self._places and self._going_of[asker] < self._each:
            # Nobody is passed by: who waits while there is room has its own share taken.
            self._go(ticket, asker)
            return True
        queue = self._queues.get(asker)
        if len(self._asker) >= self._waiting or len(queue or ()) >= self._waiting_each:
            raise QueueFullError
        if queue is None:
            queue = self._queues[asker] = OrderedDict()
        queue[ticket] = None
        self._asker[ticket] = asker
        return False

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """It is done, or waits no more. Those that may go now."""
        if ticket in self._asker:
            self._unqueue(ticket)
        elif ticket in self._going:
            asker = self._going.pop(ticket)
            self._going_of[asker] -= 1
            if not self._going_of[asker]:
                del self._going_of[asker]
        return self._next()

    def _next(self) -> list[Ticket]:
        found: list[Ticket] = []
        while len(self._going) < self._places:
            asker = next((one for one in self._queues if self._going_of[one] < self._each), None)
            if asker is None:
                break
            ticket = next(iter(self._queues[asker]))
            self._queues.move_to_end(asker)
            self._unqueue(ticket)
            self._go(ticket, asker)
            found.append(ticket)
        return found

    def _go(self, ticket: Ticket, asker: Asker) -> None:
        self._going[ticket] = asker
        self._going_of[asker] += 1

    def _unqueue(self, ticket: Ticket) -> None:
        asker = self._asker.pop(ticket)
        queue = self._queues[asker]
        del queue[ticket]
        if not queue:
            del self._queues[asker]
