"""Reviews are asked seldom, never too many at once, and without an answer nothing is allowed."""

import asyncio
from dataclasses import replace

import pytest
import structlog

from tests.kubeletapi.reviewers import Rules
from vknode.kubeletapi import (
    Access,
    AuthenticationSettings,
    AuthorizationSettings,
    ReviewError,
    User,
)
from vknode.kubeletapi.reviews import (
    CONCURRENT,
    CONCURRENT_EACH,
    LONGEST,
    WAITING,
    WAITING_EACH,
    Reviews,
)

JANE = User("jane", groups=("ops",))
METRICS = Access(JANE, "get", "az1-a", "metrics")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(rules: Rules, clock: Clock | None = None, patience: float = 30.0) -> Reviews:
    return Reviews(
        rules,
        AuthenticationSettings(token_ttl=120.0),
        AuthorizationSettings(allowed_ttl=300.0, denied_ttl=30.0),
        clock=clock or Clock(),
        patience=patience,
    )


@pytest.mark.parametrize(("allowed", "lasts"), [(True, 300.0), (False, 30.0)])
async def test_an_answer_is_remembered_for_its_time(allowed: bool, lasts: float) -> None:
    clock, rules = Clock(), Rules(allows=lambda _: allowed)
    reviews = make(rules, clock)
    assert await reviews.is_allowed(METRICS) is allowed
    clock.now = lasts - 1
    rules.allows = lambda _: not allowed
    assert await reviews.is_allowed(METRICS) is allowed
    assert len(rules.asked) == 1
    clock.now = lasts
    assert await reviews.is_allowed(METRICS) is not allowed


@pytest.mark.parametrize(
    "other",
    [
        replace(METRICS, user=replace(JANE, name="joe")),
        replace(METRICS, user=replace(JANE, groups=())),
        replace(METRICS, user=replace(JANE, uid="2")),
        replace(METRICS, user=replace(JANE, extra=(("scope", ("none",)),))),
        replace(METRICS, verb="create"),
        replace(METRICS, node="az1-b"),
        replace(METRICS, node=""),
        replace(METRICS, subresource="proxy"),
    ],
)
async def test_an_answer_serves_no_other_question(other: Access) -> None:
    rules = Rules(allows=lambda access: access == METRICS)
    reviews = make(rules)
    assert await reviews.is_allowed(METRICS)
    assert not await reviews.is_allowed(other)
    assert await reviews.is_allowed(METRICS)


async def test_a_question_too_long_is_not_remembered() -> None:
    rules = Rules(allows=lambda _: True)
    reviews = make(rules)
    long = replace(METRICS, user=User("x" * (LONGEST + 1)))
    await reviews.is_allowed(long)
    await reviews.is_allowed(long)
    assert len(rules.asked) == 2


async def test_a_good_token_is_remembered_and_a_bad_one_is_not() -> None:
    clock, rules = Clock(), Rules(tokens={"good": JANE})
    reviews = make(rules, clock)
    for _ in range(2):
        assert await reviews.token_user("good") == JANE
        assert await reviews.token_user("bad") is None
    assert rules.reviewed == ["good", "bad", "bad"]
    clock.now = 120.0
    rules.tokens.clear()
    assert await reviews.token_user("good") is None


async def test_tokens_are_known_by_a_hash_of_this_process() -> None:
    keys = set()
    for _ in range(2):
        reviews = make(Rules(tokens={"good-token": JANE}))
        await reviews.token_user("good-token")
        keys |= set(reviews._users._answers)
    assert len(keys) == 2
    assert not any(b"good-token" in key for key in keys)


async def test_a_failure_allows_nothing_and_is_not_remembered() -> None:
    rules = Rules(allows=lambda _: True, tokens={"good": JANE}, failure="no answer")
    reviews = make(rules)
    with pytest.raises(ReviewError, match="no answer"):
        await reviews.is_allowed(METRICS)
    with pytest.raises(ReviewError, match="no answer"):
        await reviews.token_user("good")
    rules.failure = ""
    assert await reviews.is_allowed(METRICS)
    assert await reviews.token_user("good") == JANE


async def test_failures_are_told_now_and_then() -> None:
    """Anybody can cause one."""
    clock, rules = Clock(), Rules(failure="no answer")
    reviews = make(rules, clock)
    with structlog.testing.capture_logs() as lines:
        for second in range(30):
            clock.now = float(second)
            for ask in (reviews.is_allowed(METRICS), reviews.token_user("a")):
                with pytest.raises(ReviewError):
                    await ask
    events = [line["event"] for line in lines]
    assert events.count("kubelet_api_access_review_failed") == 3
    assert events.count("kubelet_api_token_review_failed") == 3


async def test_who_asks_the_same_at_once_shares_one_request() -> None:
    rules = Rules(allows=lambda _: True)
    rules.gate.clear()
    reviews = make(rules)
    tasks = [asyncio.create_task(reviews.is_allowed(METRICS)) for _ in range(20)]
    await settled()
    tasks[0].cancel()  # the one that began it leaves
    await settled()
    rules.gate.set()
    assert await asyncio.gather(*tasks[1:]) == [True] * 19
    assert len(rules.asked) == 1


async def test_questions_on_their_way_are_few() -> None:
    rules = Rules(allows=lambda _: True)
    rules.gate.clear()
    reviews = make(rules)
    most = CONCURRENT + WAITING
    users = [replace(JANE, name=f"user-{number % 10}") for number in range(most)]
    asked = [replace(METRICS, user=user, node=f"{n}") for n, user in enumerate(users)]
    tasks = [asyncio.create_task(reviews.is_allowed(access)) for access in asked]
    await settled()
    assert rules.at_once == CONCURRENT
    with pytest.raises(ReviewError, match="too many"):
        await reviews.is_allowed(METRICS)
    # Tokens have places of their own.
    token = asyncio.create_task(reviews.token_user("any"))
    await settled()
    assert rules.reviewed == ["any"]
    rules.gate.set()
    assert all(await asyncio.gather(*tasks))
    assert await token is None
    assert rules.most_at_once == CONCURRENT + 1
    assert await reviews.is_allowed(METRICS)


async def test_one_users_questions_keep_no_other_user_waiting() -> None:
    rules = Rules(allows=lambda _: True)
    rules.gate.clear()
    reviews = make(rules)
    most = CONCURRENT_EACH + WAITING_EACH
    flood = [replace(METRICS, node=f"node-{number}") for number in range(most)]
    tasks = [asyncio.create_task(reviews.is_allowed(access)) for access in flood]
    await settled()
    assert rules.at_once == CONCURRENT_EACH
    with pytest.raises(ReviewError, match="too many"):
        await reviews.is_allowed(METRICS)
    joe = replace(METRICS, user=User("joe"))
    other = asyncio.create_task(reviews.is_allowed(joe))
    await settled()
    assert rules.asked[-1] == joe, "on its way already"
    rules.gate.set()
    assert all(await asyncio.gather(other, *tasks))
    assert rules.most_at_once == CONCURRENT_EACH + 1


async def test_one_address_with_many_tokens_keeps_no_other_waiting() -> None:
    rules = Rules()
    rules.gate.clear()
    reviews = make(rules)
    most = CONCURRENT_EACH + WAITING_EACH
    tasks = [asyncio.create_task(reviews.token_user(f"t{n}", "10.0.0.1")) for n in range(most)]
    await settled()
    with pytest.raises(ReviewError, match="too many"):
        await reviews.token_user("one-more", "10.0.0.1")
    other = asyncio.create_task(reviews.token_user("other", "10.0.0.2"))
    await settled()
    assert rules.reviewed[-1] == "other"
    rules.gate.set()
    assert await asyncio.gather(other, *tasks) == [None] * (most + 1)


async def test_who_gives_up_waiting_leaves_its_place_to_others() -> None:
    rules = Rules(allows=lambda _: True)
    rules.gate.clear()
    reviews = make(rules, patience=0.05)
    most = CONCURRENT_EACH + WAITING_EACH
    for _ in range(2):
        nodes = [replace(METRICS, node=f"node-{number}") for number in range(most)]
        answers = await asyncio.gather(*map(reviews.is_allowed, nodes), return_exceptions=True)
        assert all("did not answer" in str(answer) for answer in answers)
    assert rules.at_once == 0
    rules.gate.set()
    assert await reviews.is_allowed(METRICS)


async def test_patience_ends_also_for_who_waits_for_a_place() -> None:
    rules = Rules()
    rules.gate.clear()
    reviews = make(rules, patience=0.01)
    nodes = [replace(METRICS, node=f"node-{number}") for number in range(CONCURRENT + 5)]
    answers = await asyncio.gather(*map(reviews.is_allowed, nodes), return_exceptions=True)
    assert all(isinstance(answer, ReviewError) for answer in answers)
    assert rules.at_once == 0


async def test_the_end_lets_nobody_wait() -> None:
    rules = Rules()
    rules.gate.clear()
    reviews = make(rules)
    waiting = asyncio.create_task(reviews.is_allowed(METRICS))
    await settled()
    await reviews.close()
    with pytest.raises(ReviewError, match="stopping"):
        await waiting
    with pytest.raises(ReviewError, match="stopping"):
        await reviews.is_allowed(METRICS)


async def settled() -> None:
    """Lets every task run until it waits for something outside."""
    for _ in range(10):
        await asyncio.sleep(0)
