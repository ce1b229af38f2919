"""What the API server is asked about users of the kubelet API, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.kube.scripted import ScriptedServer, body, failure, plain_connection
from vknode.compose.reviewer import ApiReviewer
from vknode.kube.backoff import Backoff
from vknode.kube.client import KubeClient
from vknode.kubeletapi import Access, ReviewError, User

JANE = User("jane", "u-1", ("ops", "system:authenticated"), (("scopes", ("a", "b")),))
METRICS = Access(JANE, "get", "az1-a", "metrics")


@asynccontextmanager
async def reviewer(*answers: Any) -> AsyncIterator[tuple[ApiReviewer, ScriptedServer]]:
    async with ScriptedServer() as server:
        server.script = list(answers)
        connection = plain_connection(server.url)
        client = KubeClient(
            connection, make_backoff=lambda: Backoff(base=0.001, maximum=0.002, jitter=0)
        )
        try:
            yield ApiReviewer(client), server
        finally:
            await connection.close()


async def test_a_token_is_reviewed_for_the_api_servers_own_audiences() -> None:
    user = {
        "username": "jane",
        "uid": "u-1",
        "groups": ["ops", "system:authenticated"],
        "extra": {"scopes": ["a", "b"]},
    }
    answer = {"status": {"authenticated": True, "user": user}}
    async with reviewer(body(201, answer)) as (asked, server):
        assert await asked.token_user("abc") == JANE
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
    assert json.loads(seen.body) == {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": "abc"},
    }


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False, "error": "token has expired"},
        {"authenticated": True, "user": {}},
        {},
    ],
)
async def test_a_token_that_is_nobodys(status: dict[str, Any]) -> None:
    async with reviewer(body(201, {"status": status})) as (asked, _):
        assert await asked.token_user("abc") is None


async def test_the_attributes_of_an_access() -> None:
    async with reviewer(body(201, {"status": {"allowed": True}})) as (asked, server):
        assert await asked.is_allowed(METRICS)
    (seen,) = server.seen
    assert seen.path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    assert json.loads(seen.body)["spec"] == {
        "user": "jane",
        "uid": "u-1",
        "groups": ["ops", "system:authenticated"],
        "extra": {"scopes": ["a", "b"]},
        "resourceAttributes": {
            "verb": "get",
            "version": "v1",
            "resource": "nodes",
            "subresource": "metrics",
            "name": "az1-a",
        },
    }


@pytest.mark.parametrize(
    "status", [{"allowed": False}, {"allowed": False, "denied": True}, {"reason": "no"}, {}]
)
async def test_anything_but_a_plain_yes_is_a_no(status: dict[str, Any]) -> None:
    async with reviewer(body(201, {"status": status})) as (asked, _):
        assert not await asked.is_allowed(METRICS)


async def test_yes_and_no_at_once_is_no_answer() -> None:
    answer = {"status": {"allowed": True, "denied": True}}
    async with reviewer(body(201, answer)) as (asked, _):
        with pytest.raises(ReviewError, match="both"):
            await asked.is_allowed(METRICS)


async def test_a_server_that_stumbles_is_asked_again() -> None:
    answers = failure(500, "InternalError"), body(201, {"status": {"allowed": True}})
    async with reviewer(*answers) as (asked, server):
        assert await asked.is_allowed(METRICS)
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (failure(403, "Forbidden", "cannot create resource tokenreviews"), "cannot create"),
        (failure(400, "BadRequest", "bad token sesame-1"), "its message holds what it was sent"),
        (body(200, {"status": {"authenticated": "yes"}}), "no review"),
        (body(200, [1]), "no review"),
    ],
)
async def test_no_answer_is_an_error_that_holds_no_token(answer: Any, words: str) -> None:
    async with reviewer(answer) as (asked, _):
        with pytest.raises(ReviewError, match=words) as caught:
            await asked.token_user("sesame-1")
    assert "sesame" not in str(caught.value)
