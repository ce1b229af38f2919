"""Requests that schemathesis makes of docs/kubelet-openapi.yaml, right and wrong ones: the answer
is one that the document has, and comes soon; who may do nothing is told nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tests.kubeletapi.hostile.budget import hold
from tests.kubeletapi.hostile.document import METHODS, document
from tests.kubeletapi.hostile.harmless import CONTENT
from tests.kubeletapi.hostile.world import (
    MAY_ALL,
    MAY_NOTHING,
    NOBODY,
    PATIENCE,
    World,
    read_to_end,
    serving,
)
from vknode.kubeletapi.file_answers import http_date

# Of each path; streams and forms have more to be wrong about.
EXAMPLES, MANY_EXAMPLES = 5, 20
MANY = ("/containerLogs", "/exec", "/attach", "/portForward", "/stats")
# When the files of a folder were modified; the document names it among its dates.
NOON = 1_700_000_000
# On a busy machine some of these tests take minutes.
pytestmark = pytest.mark.timeout(900)
_CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
#: What is there: half of the requests are for it, the others for what schemathesis makes up.
_THERE = {
    "namespace": st.just("default"),
    "pod": st.sampled_from(["web", "db"]),
    "uid": st.just("u-1"),
    "container": st.sampled_from(["main", "terminal", "new"]),
    "rest": st.sampled_from(["", "a.log", "core", "pods", "pods/", "pods/0.log.gz", "a.log/"]),
}

Operation = APIOperation[Any, Any, Any, Any]
#: A request, and what to write into its path.
Made = tuple[Case[Any], dict[str, str]]


def operations(whole: dict[str, Any]) -> list[Operation]:
    found = schemathesis.openapi.from_dict(whole).get_all_operations()
    return [one.ok() for one in found if isinstance(one, Ok)]


OPERATIONS = operations(document())
#: Of an agent that shows a folder; the other paths are as they are without.
LOG_PATHS = ("/logs", "/logs/{rest}")
LOG_OPERATIONS = [one for one in operations(document(system_logs=True)) if one.path in LOG_PATHS]


def cases(operation: Operation) -> st.SearchStrategy[Made]:
    """Requests as the document wants them, and wrong ones; with what to write into the path."""
    names = set(re.findall(r"{(\w+)}", operation.path)) & set(_THERE)
    there = st.fixed_dictionaries({name: _THERE[name] for name in sorted(names)})
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return st.tuples(st.one_of(right, wrong), st.one_of(there, st.just({})))


def of_the_path(
    path: str, among: Sequence[Operation] = tuple(OPERATIONS)
) -> st.SearchStrategy[Made]:
    return st.one_of([cases(one) for one in among if one.path == path])


def answer(world: World, who: str, case: Case[Any], there: dict[str, str]) -> Response:
    case.path_parameters.update(there)
    pair = world.pairs[who]
    # A session each: after an upgrade its connection is no use to a next request.
    with requests.Session() as session:
        session.trust_env = False  # no proxy, no .netrc of whoever runs this
        return case.call(
            base_url=world.url,
            session=session,
            verify=str(world.authority.cert),
            cert=None if pair is None else (str(pair.cert), str(pair.key)),
            timeout=PATIENCE,
            allow_redirects=False,
        )


def was_no_request(response: Response) -> bool:
    """Some of what schemathesis makes up is no HTTP, such as an empty Content-Length. That is
    answered as by a server of HTTP/1.0, whatever the path and whoever asks."""
    return response.http_version == "1.0" and response.status_code == 400


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("answers")) as world:
        yield world


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Shows a folder."""
    folder = tmp_path_factory.mktemp("shown")
    (folder / "pods").mkdir()
    for name, content in (("a.log", CONTENT), ("pods/0.log.gz", b"\x1f\x8b\x08"), ("core", b"\0")):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (NOON, NOON))
    with serving(tmp_path_factory.mktemp("answers"), system_logs=folder) as world:
        yield world


@pytest.mark.parametrize("path", document()["paths"])
def test_every_answer_is_one_that_the_document_has(served: World, path: str) -> None:
    examples = MANY_EXAMPLES if path.startswith(MANY) else EXAMPLES
    require_answers(served, of_the_path(path), document(), examples)


@pytest.mark.parametrize("path", LOG_PATHS)
def test_every_answer_about_a_folder_is_one_that_the_document_has(shown: World, path: str) -> None:
    whole = document(system_logs=True)
    require_answers(shown, of_the_path(path, LOG_OPERATIONS), whole, 2 * MANY_EXAMPLES)


@pytest.mark.parametrize(
    ("rest", "headers", "status"),
    [
        ("", {}, 200),
        ("core", {}, 200),
        ("pods/0.log.gz", {}, 200),
        ("a.log", {"Range": "bytes=1-2"}, 206),
        ("a.log/", {}, 301),
        ("pods", {}, 301),
        ("a.log", {"If-Modified-Since": http_date(NOON)}, 304),
        ("", {"If-Modified-Since": "Fri, 31 Dec 9999 23:59:59 GMT"}, 304),
        ("shut", {}, 404),
        ("a.log", {"If-Match": '"x"'}, 412),
        ("a.log", {"Range": "bytes=99-"}, 416),
        ("a.log", {"Range": "none"}, 416),
    ],
)
def test_each_answer_about_a_folder(
    shown: World, rest: str, headers: dict[str, str], status: int
) -> None:
    load_all_checks()
    (operation,) = (one for one in LOG_OPERATIONS if one.path == "/logs/{rest}")
    case = operation.Case(path_parameters={"rest": rest}, headers=headers)
    response = answer(shown, MAY_ALL, case, {})
    assert response.status_code == status
    case.validate_response(response, checks=_CHECKS)
    require_wording(document(system_logs=True), operation, response)


def require_answers(
    world: World, requests_: st.SearchStrategy[Made], whole: dict[str, Any], examples: int
) -> None:
    load_all_checks()

    def hostile(made: Made) -> None:
        case, there = made
        response = answer(world, MAY_ALL, case, there)
        if was_no_request(response):
            return
        case.validate_response(response, checks=_CHECKS)
        require_wording(whole, case.operation, response)

    hold(hostile, requests_, examples=examples)
    world.require_health()


@pytest.mark.parametrize("path", document()["paths"])
def test_other_methods_are_refused_with_those_that_there_are(served: World, path: str) -> None:
    require_methods(served, document(), path)


@pytest.mark.parametrize("path", LOG_PATHS)
def test_a_folder_is_read_only(shown: World, path: str) -> None:
    require_methods(shown, document(system_logs=True), path)


def require_methods(world: World, whole: dict[str, Any], path: str) -> None:
    there = {one.upper() for one in whole["paths"][path]} & METHODS
    for method in sorted(METHODS - there):
        head = f"{method} {path.replace('{', '').replace('}', '')} HTTP/1.1\r\nHost: x\r\n"
        with world.connected(MAY_ALL) as tls:
            tls.sendall(f"{head}Connection: close\r\n\r\n".encode())
            said = read_to_end(tls).decode()
        assert said.startswith("HTTP/1.1 405 "), said
        assert f"\r\nAllow: {','.join(sorted(there))}\r\n" in said


def require_wording(whole: dict[str, Any], operation: Operation, response: Response) -> None:
    """Plain text is as the document says; so a 500 is one that a kubelet gives, with its words."""
    found = document_response(whole, operation, response.status_code)
    text: dict[str, Any] = found.get("content", {}).get("text/plain", {}).get("schema", {})
    if not text:
        return
    body = response.content.decode(errors="replace")
    if operation.method.upper() != "HEAD":
        assert re.search(text.get("pattern", ""), body), body
        assert text.get("const", body) == body


def document_response(whole: dict[str, Any], operation: Operation, status: int) -> dict[str, Any]:
    found: dict[str, Any] = whole["paths"][operation.path][operation.method]["responses"][
        str(status)
    ]
    if "$ref" in found:
        found = whole["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize(("who", "status"), [(NOBODY, 401), (MAY_NOTHING, 403)])
def test_who_may_do_nothing_is_told_nothing(served: World, who: str, status: int) -> None:
    any_path = st.sampled_from(sorted(document()["paths"])).flatmap(of_the_path)
    require_silence(served, any_path, who, status)


@pytest.mark.parametrize(("who", "status"), [(NOBODY, 401), (MAY_NOTHING, 403)])
def test_who_may_do_nothing_is_told_nothing_of_a_folder(
    shown: World, who: str, status: int
) -> None:
    any_path = st.one_of([of_the_path(path, LOG_OPERATIONS) for path in LOG_PATHS])
    require_silence(shown, any_path, who, status)


def require_silence(
    world: World, requests_: st.SearchStrategy[Made], who: str, status: int
) -> None:
    def hostile(made: Made) -> None:
        response = answer(world, who, *made)
        assert CONTENT not in response.content
        if was_no_request(response):
            return
        assert response.status_code == status
        if made[0].method != "HEAD":
            assert response.content.startswith((b"Unauthorized", b"Forbidden (user=mallory, "))

    hold(hostile, requests_, examples=100)
    world.require_health()
