"""Fetching what a Pod names, as its node, side by side, patient with a lagging authorizer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from tests.agent.pods import pod_json
from vknode.agent.references import ROOT_CA, References
from vknode.agent.tokens import Tokens
from vknode.kube.errors import ApiError, Forbidden, Unreachable
from vknode.translate.facts import Missing
from vknode.translate.needs import needs

TOKEN_VOLUME = {
    "name": "token",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]
    },
}


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Api:
    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, list[Exception]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens: Iterator[str] = itertools.repeat("t0ken")
        self.together = 0
        self.running = 0

    async def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        self.requests.append(("GET", path, impersonate))
        await self._answer(path)
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return msgspec.json.encode(self.objects[path])

    async def create(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        self.requests.append(("POST", path, impersonate))
        self.bodies.append(msgspec.json.decode(body))
        await self._answer(path)
        answer = {"status": {"token": next(self.tokens)}, "spec": {"expirationSeconds": 3607}}
        return msgspec.json.encode(answer)

    async def _answer(self, path: str) -> None:
        self.running += 1
        self.together = max(self.together, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        if self.failures.get(path):
            raise self.failures[path].pop(0)


def path(kind: str, name: str) -> str:
    return f"/api/v1/namespaces/default/{kind}/{name}"


TOKEN = path("serviceaccounts", "default/token")


def refs(api: Api, **options: Any) -> References:
    return References(api, lag_retries=(0.001, 0.001), missing_retries=(0.001,), **options)


@pytest.fixture
def api() -> Api:
    api = Api()
    api.objects[path("configmaps", ROOT_CA)] = {"data": {"ca.crt": "PEM"}}
    api.objects[path("secrets", "s")] = {"data": {"k": "dg=="}}
    return api


def usual_pod(**spec: Any) -> dict[str, Any]:
    """A Pod whose container mounts all its volumes (others are not looked up)."""
    pod = pod_json("u1", spec={"volumes": [TOKEN_VOLUME], **spec})
    pod["spec"]["containers"][0]["volumeMounts"] = [
        {"name": volume["name"], "mountPath": f"/{volume['name']}"}
        for volume in pod["spec"]["volumes"]
    ]
    return pod


async def test_everything_at_once_and_as_the_node(api: Api) -> None:
    pod = usual_pod(imagePullSecrets=[{"name": "s"}])
    resolved = await refs(api).fetch("default", needs(pod), "cell-1")
    assert {node for _, _, node in api.requests} == {"cell-1"}
    assert api.together == 3
    assert list(resolved.tokens.values()) == ["t0ken"]
    assert resolved.secrets["s"] == {"data": {"k": "dg=="}}
    spec = api.bodies[0]["spec"]
    assert spec["boundObjectRef"]["uid"] == "u1"
    assert spec["audiences"] == []
    assert spec["expirationSeconds"] == 3607


async def test_a_burst_asks_for_the_root_ca_once_a_node(api: Api) -> None:
    references = refs(api)
    need = needs(usual_pod())
    await asyncio.gather(*(references.fetch("default", need, "cell-1") for _ in range(5)))
    await references.fetch("default", need, "cell-1")
    await references.fetch("default", need, "cell-2")
    asked = [node for _, p, node in api.requests if p.endswith(ROOT_CA)]
    assert asked == ["cell-1", "cell-2"]


async def test_a_token_is_asked_for_once_and_again_when_it_must_be_renewed(api: Api) -> None:
    clock = Clock()
    references = refs(api, tokens=Tokens(clock=clock, rand=lambda: 0.0))
    need = needs(usual_pod())
    api.tokens = iter(["first", "second"])

    async def token() -> str | Missing:
        (found,) = (await references.fetch("default", need, "cell-1")).tokens.values()
        return found

    assert await token() == "first"
    clock.now += 0.79 * 3607
    assert await token() == "first"
    clock.now += 0.02 * 3607
    assert await token() == "second"
    assert sum(method == "POST" for method, _, _ in api.requests) == 2


@pytest.mark.parametrize(
    "failure", [Unreachable("away"), ApiError(404, "NotFound", "no such account")]
)
async def test_a_token_that_cannot_be_renewed_is_used_while_it_is_valid(
    api: Api, failure: ApiError | Unreachable
) -> None:
    clock = Clock()
    references = refs(api, tokens=Tokens(clock=clock, rand=lambda: 0.0))
    need = needs(usual_pod())

    async def token() -> str | Missing:
        (found,) = (await references.fetch("default", need, "cell-1")).tokens.values()
        return found

    assert await token() == "t0ken"
    api.failures[TOKEN] = [failure] * 20
    clock.now += 0.9 * 3607
    assert await token() == "t0ken"
    assert references.tokens.renewal_in("u1") == pytest.approx(45.0)
    clock.now += 0.2 * 3607
    if isinstance(failure, Unreachable):
        with pytest.raises(Unreachable):
            await token()
    else:
        assert await token() == Missing("no such account")


async def test_while_the_root_ca_changes_it_is_not_kept_for_long(api: Api) -> None:
    now = 0.0
    references = refs(api, clock=lambda: now)
    need = needs(usual_pod())
    await references.fetch("default", need, "cell-1")
    references.distrust_root_ca(100.0)
    for seconds in (1.0, 2.0, 20.0):
        now = seconds
        await references.fetch("default", need, "cell-1")
    assert sum(p.endswith(ROOT_CA) for _, p, _ in api.requests) == 3


async def test_what_is_kept_expires(api: Api) -> None:
    now = 0.0
    references = refs(api, clock=lambda: now)
    need = needs(usual_pod())
    await references.fetch("default", need, "cell-1")
    now = 299.0
    await references.fetch("default", need, "cell-1")
    now = 301.0
    await references.fetch("default", need, "cell-1")
    assert sum(p.endswith(ROOT_CA) for _, p, _ in api.requests) == 2


async def test_a_lagging_authorizer_is_waited_for(api: Api) -> None:
    api.failures[TOKEN] = [
        Forbidden(403, "Forbidden", "no relationship found"),
        ApiError(404, "NotFound", 'pods "web" not found'),
    ]
    resolved = await refs(api).fetch("default", needs(usual_pod()), "cell-1")
    assert list(resolved.tokens.values()) == ["t0ken"]


async def test_a_lasting_refusal_counts_with_the_servers_words(api: Api) -> None:
    api.failures[TOKEN] = [Forbidden(403, "Forbidden", "never")] * 5
    resolved = await refs(api).fetch("default", needs(usual_pod()), "cell-1")
    assert list(resolved.tokens.values()) == [Missing("never", not_found=False)]


async def test_missing_is_an_answer_and_optional_missing_a_quick_one(api: Api) -> None:
    pod = usual_pod(
        volumes=[
            {"name": "a", "configMap": {"name": "gone", "defaultMode": 420}},
            {"name": "b", "configMap": {"name": "may-be", "optional": True, "defaultMode": 420}},
        ]
    )
    resolved = await refs(api).fetch("default", needs(pod), "cell-1")
    assert isinstance(resolved.config_maps["gone"], Missing)
    assert isinstance(resolved.config_maps["may-be"], Missing)
    asked = [p for _, p, _ in api.requests]
    assert asked.count(path("configmaps", "gone")) == 2
    assert asked.count(path("configmaps", "may-be")) == 1


async def test_no_answer_is_not_missing(api: Api) -> None:
    api.failures[path("configmaps", ROOT_CA)] = [Unreachable("away")]
    references = refs(api)
    with pytest.raises(Unreachable):
        await references.fetch("default", needs(usual_pod()), "cell-1")
    # And it is not remembered.
    resolved = await references.fetch("default", needs(usual_pod()), "cell-1")
    assert resolved.config_maps[ROOT_CA] == {"data": {"ca.crt": "PEM"}}


async def test_no_secret_is_shown(api: Api) -> None:
    pod = usual_pod(imagePullSecrets=[{"name": "s"}])
    resolved = await refs(api).fetch("default", needs(pod), "cell-1")
    assert "dg==" not in repr(resolved)
    assert "t0ken" not in repr(resolved)
