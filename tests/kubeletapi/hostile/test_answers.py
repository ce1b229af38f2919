"""Requests that schemathesis makes of docs/kubelet-openapi.yaml, right and wrong ones: the answer
is one that the document has, and comes soon; who may do nothing is told nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
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

# Of each path; streams and forms have more to be wrong about.
EXAMPLES, MANY_EXAMPLES = 5, 20
MANY = ("/containerLogs", "/exec", "/attach", "/portForward", "/stats")
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
}

Operation = APIOperation[Any, Any, Any, Any]
#: A request, and what to write into its path.
Made = tuple[Case[Any], dict[str, str]]

schema = schemathesis.openapi.from_dict(document())


OPERATIONS: list[Operation] = [
    found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)
]


def cases(operation: Operation) -> st.SearchStrategy[Made]:
    """Requests as the document wants them, and wrong ones; with what to write into the path."""
    names = set(re.findall(r"{(\w+)}", operation.path)) & set(_THERE)
    there = st.fixed_dictionaries({name: _THERE[name] for name in sorted(names)})
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return st.tuples(st.one_of(right, wrong), st.one_of(there, st.just({})))


def of_the_path(path: str) -> st.SearchStrategy[Made]:
    return st.one_of([cases(one) for one in OPERATIONS if one.path == path])


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


@pytest.mark.parametrize("path", document()["paths"])
def test_every_answer_is_one_that_the_document_has(served: World, path: str) -> None:
    load_all_checks()

    def hostile(made: Made) -> None:
        case, there = made
        response = answer(served, MAY_ALL, case, there)
        if was_no_request(response):
            return
        case.validate_response(response, checks=_CHECKS)
        require_wording(case.operation, response)

    examples = MANY_EXAMPLES if path.startswith(MANY) else EXAMPLES
    hold(hostile, of_the_path(path), examples=examples)
    served.require_health()


@pytest.mark.parametrize("path", document()["paths"])
def test_other_methods_are_refused_with_those_that_there_are(served: World, path: str) -> None:
    there = {one.upper() for one in document()["paths"][path]} & METHODS
    for method in sorted(METHODS - there):
        head = f"{method} {path.replace('{', '').replace('}', '')} HTTP/1.1\r\nHost: x\r\n"
        with served.connected(MAY_ALL) as tls:
            tls.sendall(f"{head}Connection: close\r\n\r\n".encode())
            said = read_to_end(tls).decode()
        assert said.startswith("HTTP/1.1 405 "), said
        assert f"\r\nAllow: {','.join(sorted(there))}\r\n" in said


def require_wording(operation: Operation, response: Response) -> None:
    """Plain text is as the document says; so a 500 is one that a kubelet gives, with its words."""
    found = document_response(operation, response.status_code)
    text: dict[str, Any] = found.get("content", {}).get("text/plain", {}).get("schema", {})
    body = response.content.decode()
    if operation.method.upper() != "HEAD":
        assert re.search(text.get("pattern", ""), body), body
        assert text.get("const", body) == body


def document_response(operation: Operation, status: int) -> dict[str, Any]:
    whole = document()
    found: dict[str, Any] = whole["paths"][operation.path][operation.method]["responses"][
        str(status)
    ]
    if "$ref" in found:
        found = whole["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize(("who", "status"), [(NOBODY, 401), (MAY_NOTHING, 403)])
def test_who_may_do_nothing_is_told_nothing(served: World, who: str, status: int) -> None:
    def hostile(made: Made) -> None:
        response = answer(served, who, *made)
        assert CONTENT not in response.content
        if was_no_request(response):
            return
        assert response.status_code == status
        if made[0].method != "HEAD":
            assert response.content.startswith((b"Unauthorized", b"Forbidden (user=mallory, "))

    any_path = st.sampled_from(sorted(document()["paths"])).flatmap(of_the_path)
    hold(hostile, any_path, examples=100)
    served.require_health()
