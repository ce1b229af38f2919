"""Asks the cluster who a token belongs to and what a user may do, seldom and not too much at once.

Theory of operation, after the delegating authenticator and authorizer of a kubelet
(k8s.io/apiserver pkg/authentication/token/cache, plugin/pkg/authorizer/webhook, 1.37):

* A good token is remembered for `AuthenticationSettings.token_ttl`, under an HMAC of it with a key
  that only this process has; tokens themselves are kept nowhere. A bad one is not remembered: it
  may become good, and the API server remembers it itself for 10 s.
* An answer to what a user may do is remembered for `allowed_ttl` or `denied_ttl`, unless the
  question is so long that a client could fill the memory with it.
* Everybody who asks the same at the same time shares one request. At most `CONCURRENT` requests of
  each kind are on their way and `WAITING` wait, of one user at most `CONCURRENT_EACH` and
  `WAITING_EACH`, and users take turns (`turns`): nobody's questions keep all others' waiting. Whose
  a token is nobody knows yet, so there clients' addresses stand for users; tokens have places of
  their own, so that a flood of bad ones does not keep a client certificate waiting.
* Where the cluster does not answer, nothing is allowed: `ReviewError`.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog

from vknode.kubeletapi.identity import User
from vknode.kubeletapi.review_cache import ReviewCache
from vknode.kubeletapi.settings import AuthenticationSettings, AuthorizationSettings
from vknode.kubeletapi.streams import cancel_and_wait
from vknode.kubeletapi.turns import QueueFullError, Turns

_log = structlog.get_logger()

CONCURRENT, CONCURRENT_EACH = 16, 8
WAITING, WAITING_EACH = 1024, 256
# Seconds that one question may take, waiting for its place included.
PATIENCE = 30.0
# Answers kept of each kind, as in a kubelet.
CACHED = 8192
# Characters of a question that is remembered.
LONGEST = 10_000
# Seconds between two lines about reviews of a kind that fail: anybody can cause one.
TELL_EVERY = 10.0
_STOPPING = "the kubelet API is stopping"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ReviewError(Exception):
    """There is no answer. The text holds no token."""


@dataclass(frozen=True, slots=True)
class Access:
    """One question: may the user do `verb` to `nodes/SUBRESOURCE` of this node (of all nodes, if
    empty)?"""

    user: User
    verb: str
    node: str
    subresource: str


class Reviewer(Protocol):
    """Who knows the answers: the composition root gives the API server's. Both raise
    `ReviewError`, whose text must not hold the token."""

    async def token_user(self, token: str) -> User | None:
        """Whose token it is; None if it is nobody's, or for another audience."""

    async def is_allowed(self, access: Access) -> bool:
        """Whether the cluster allows it."""


class Reviews:
    """The answers of `reviewer`, remembered. `close` at the end."""

    def __init__(
        self,
        reviewer: Reviewer,
        authentication: AuthenticationSettings,
        authorization: AuthorizationSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self._reviewer = reviewer
        self._authentication = authentication
        self._authorization = authorization
        self._secret = secrets.token_bytes(32)
        self._users: ReviewCache[bytes, User] = ReviewCache(CACHED, clock)
        self._decisions: ReviewCache[Access, bool] = ReviewCache(CACHED, clock)
        self._token_flights: _Flights[bytes, User | None] = _Flights(patience)
        self._access_flights: _Flights[Access, bool] = _Flights(patience)
        self._clock = clock
        self._tell_at: dict[str, float] = {}

    async def token_user(self, token: str, client: str = "") -> User | None:
        """`client` is the address that it came from. Raises `ReviewError`."""
        key = hmac.digest(self._secret, token.encode(), hashlib.sha256)
        known = self._users.get(key)
        if known is not None:
            return known

        async def ask() -> User | None:
            user = await self._reviewer.token_user(token)
            if user is not None:
                self._users.put(key, user, self._authentication.token_ttl)
            return user

        try:
            return await self._token_flights.share(key, client, ask)
        except ReviewError as error:
            self._tell("kubelet_api_token_review_failed", error)
            raise

    async def is_allowed(self, access: Access) -> bool:
        """Raises `ReviewError`."""
        known = self._decisions.get(access)
        if known is not None:
            return known

        async def ask() -> bool:
            allowed = await self._reviewer.is_allowed(access)
            if _length(access) <= LONGEST:
                rules = self._authorization
                seconds = rules.allowed_ttl if allowed else rules.denied_ttl
                self._decisions.put(access, allowed, seconds)
            return allowed

        try:
            return await self._access_flights.share(access, access.user.name, ask)
        except ReviewError as error:
            self._tell("kubelet_api_access_review_failed", error)
            raise

    async def close(self) -> None:
        """Ends the questions that are on their way; who waits for them gets `ReviewError`."""
        await self._token_flights.close()
        await self._access_flights.close()

    def _tell(self, event: str, error: ReviewError) -> None:
        now = self._clock()
        if now >= self._tell_at.get(event, now):
            self._tell_at[event] = now + TELL_EVERY
            _log.warning(event, error=str(error))


def _length(access: Access) -> int:
    """Of the parts that a client may choose."""
    user = access.user
    extra = sum(len(key) + sum(map(len, values)) for key, values in user.extra)
    return len(user.name) + len(user.uid) + sum(map(len, user.groups)) + extra + len(access.node)


class _Flights(Generic[Key, Value]):
    """One task for each question that is being asked, shared by all who ask it. A question is a
    ticket, its asker the one who asked first."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._turns: Turns[str, asyncio.Future[None]] = Turns(
            places=CONCURRENT,
            each=CONCURRENT_EACH,
            waiting=WAITING,
            waiting_each=WAITING_EACH,
        )
        self._running: dict[Key, asyncio.Task[Value]] = {}
        self._closed = False

    async def share(
        self, key: Key, asker: str, ask: Callable[[], Coroutine[Any, Any, Value]]
    ) -> Value:
        task = self._running.get(key)
        if task is None:
            if self._closed:
                raise ReviewError(_STOPPING)
            turn = asyncio.get_running_loop().create_future()
            try:
                if self._turns.ask(turn, asker):
                    turn.set_result(None)
            except QueueFullError:
                raise ReviewError("too many reviews are waiting for the API server") from None
            task = asyncio.create_task(self._fly(turn, ask))
            self._running[key] = task
            task.add_done_callback(lambda done: self._landed(key, turn, done))
        # Who leaves does not end it for the others.
        await asyncio.wait((task,))
        if task.cancelled():
            raise ReviewError(_STOPPING)
        return task.result()

    async def _fly(
        self, turn: asyncio.Future[None], ask: Callable[[], Coroutine[Any, Any, Value]]
    ) -> Value:
        try:
            async with asyncio.timeout(self._patience):
                await turn
                return await ask()
        except TimeoutError:
            raise ReviewError(
                f"the API server did not answer a review within {self._patience:g} s"
            ) from None

    def _landed(self, key: Key, turn: asyncio.Future[None], task: asyncio.Task[Value]) -> None:
        self._running.pop(key, None)
        for other in self._turns.leave(turn):
            if not other.done():  # its task has just given up, and lands next
                other.set_result(None)
        if not task.cancelled():
            task.exception()  # seen: nobody may be waiting any more

    async def close(self) -> None:
        self._closed = True
        await cancel_and_wait(*self._running.values())
