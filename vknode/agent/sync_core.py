"""What to do next for one Pod, decided from facts alone. Pure: no loop, no clock, no models.

Theory of operation. `decide` is called whenever anything about a Pod changed: what the API
server wants, what the pool has, or what an earlier step learnt. It looks at the whole situation,
never at the event that caused the call, so events may come in any order, twice, or be lost to a
restart: the decision is the same. One action is carried out at a time for each UID; then it is
asked again.

What the agent remembers of a Pod (`Memory`) only saves calls: a new process starts with an empty
one, and comes to the same end through calls that the pool answers idempotently.

==================  =========================  ==========================================
the API server      the pool                   action
==================  =========================  ==========================================
Pod is gone         said gone                  RELEASE: forget it
Pod is gone         not (yet)                  DELETE, then wait for the pool
deleting            said gone, or never knew   FINISH: last status, then the object
deleting            not (yet)                  DELETE with the grace left, then wait
terminal, refused   runs                       DELETE: whoever ended the Pod meant it
terminal, refused   ended or absent            nothing: the logs stay until deletion
alive, never ran    absent                     CREATE, even while the pool cannot be seen:
                                               creation is idempotent
alive, has run      absent, view is current    LOST: report it, never start it again
alive, has run      absent, view is not        nothing: wait for the pool
alive               there, older content       UPDATE
alive               there                      nothing
==================  =========================  ==========================================

"Said gone" is an entry in `gone`, a snapshot that no longer names it, or a DeleteSandbox that
found nothing. Silence never counts, so nothing is reported as ended on an unreachable pool.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Action(enum.Enum):
    NOTHING = "nothing"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    FINISH = "finish"
    LOST = "lost"
    RELEASE = "release"


@dataclass(slots=True)
class Desired:
    """The API server's side. `grace` is what a deletion would give now, in seconds."""

    deleting: bool
    terminal: bool
    # The API server was once told that a container of it ran.
    started: bool
    grace: int
    generation: int
    fingerprint: int
    # It shows its labels or annotations to its containers.
    shows_metadata: bool = False


@dataclass(slots=True)
class Actual:
    """The pool's side, as last heard."""

    deleting: bool
    # SUCCEEDED or FAILED: it will not change any more.
    ended: bool
    observed_generation: int


@dataclass(slots=True)
class Memory:
    """What this process knows besides. Fields only ever move one way, except where said."""

    # We have reported the Pod as Failed by our own decision (refused, lost).
    given_up: bool = False
    # The pool said that the sandbox is no more. Reset by a new creation.
    gone: bool = False
    # The pool once told of a container that ran.
    ran: bool = False
    # What it told last was an end (SUCCEEDED or FAILED).
    ended: bool = False
    # The grace of the last DeleteSandbox that the pool took. Reset when a snapshot shows the
    # sandbox as not deleting: that pool has lost the request, or has carried it out already.
    grace_sent: int | None = None
    # Of the content that we sent to the pool. None: adopted.
    fingerprint_sent: int | None = None
    # Of the Pod when its sandbox was adopted and found to need nothing; later changes count.
    fingerprint_adopted: int | None = None


def decide(
    desired: Desired | None, actual: Actual | None, memory: Memory, *, view_current: bool
) -> Action:
    """The next step. `desired` is None only if the API server is certain to have no such Pod;
    `view_current` tells that `actual` comes from a pool whose snapshot has been seen whole."""
    if desired is None:
        return Action.RELEASE if memory.gone else _end(None, memory)
    if desired.deleting:
        return Action.FINISH if memory.gone else _end(desired.grace, memory)
    if memory.given_up or desired.terminal:
        if actual is None or actual.ended or actual.deleting or memory.gone:
            return Action.NOTHING
        return _end(None, memory)
    if actual is None or memory.gone:
        if memory.gone and memory.ended:
            # The pool removed what had ended; its end is still to be (or being) reported.
            return Action.NOTHING
        if not (memory.ran or desired.started):
            return Action.CREATE
        return Action.LOST if memory.gone or view_current else Action.NOTHING
    if actual.ended or actual.deleting:
        return Action.NOTHING
    known = memory.fingerprint_sent
    if known is None:
        known = memory.fingerprint_adopted
    if known is not None:
        return Action.NOTHING if known == desired.fingerprint else Action.UPDATE
    # Just adopted. The generation tells of changes while nobody was there, except of labels and
    # annotations: they are sent again where somebody could see a difference.
    if actual.observed_generation < desired.generation or desired.shows_metadata:
        return Action.UPDATE
    return Action.NOTHING


def _end(grace: int | None, memory: Memory) -> Action:
    """Ask for the end, unless it was asked for with no more grace than now (None: any)."""
    sent = memory.grace_sent
    if sent is not None and (grace is None or sent <= grace):
        return Action.NOTHING
    return Action.DELETE


def remaining_grace(
    asked: int | None, spec: int, *, deadline: float | None, now: float, seen_alive: bool
) -> int:
    """Seconds that a deletion gives, at least 1, as a kubelet does.

    `asked` is metadata.deletionGracePeriodSeconds, `spec` the Pod's own, `deadline` its
    deletionTimestamp, which the API server sets to the moment when the grace ends. Where we saw
    the Pod alive before, the deletion is new and all of `asked` is left; else the clock tells
    what is left (and a clock that is wrong can at worst shorten a grace that began without us).
    """
    whole = spec if asked is None else asked
    if deadline is not None and not seen_alive:
        whole = min(whole, int(deadline - now + 0.999))
    return max(1, whole)
