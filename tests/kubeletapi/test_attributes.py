"""Which right a request needs: a kubelet's table, and nothing that slips past it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.kubeletapi.attributes import Attributes, attributes


@pytest.mark.parametrize(
    ("path", "subresources"),
    [
        # As in Test_nodeAuthorizerAttributesGetter of pkg/kubelet/server (1.37), fine-grained.
        ("/", ("proxy",)),
        ("/stats", ("stats",)),
        ("/stats/summary", ("stats",)),
        ("/metrics", ("metrics",)),
        ("/metrics/resource", ("metrics",)),
        ("/logs/kubelet.log", ("log",)),
        ("/checkpoint/a/b/c", ("checkpoint",)),
        ("/pods", ("pods", "proxy")),
        ("/pods/", ("pods", "proxy")),
        ("/runningpods/", ("pods", "proxy")),
        ("/allocatedPods", ("pods", "proxy")),
        ("/healthz", ("healthz", "proxy")),
        ("/healthz/syncloop", ("healthz", "proxy")),
        ("/configz", ("configz", "proxy")),
        ("/statusz", ("statusz",)),
        ("/flagz", ("configz",)),
        ("/containerLogs/a/b/c", ("proxy",)),
        ("/metricsandmore", ("proxy",)),
        ("/debug/pprof/heap", ("proxy",)),
    ],
)
def test_the_subresources_of_a_path(path: str, subresources: tuple[str, ...]) -> None:
    assert attributes("GET", path, "node-1") == Attributes("get", "node-1", subresources)


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("GET", "get"),
        ("POST", "create"),
        ("PUT", "update"),
        ("PATCH", "patch"),
        ("DELETE", "delete"),
        ("HEAD", ""),
        ("OPTIONS", ""),
        ("get", ""),
    ],
)
def test_the_verb_of_a_method(method: str, verb: str) -> None:
    assert attributes(method, "/containerLogs/a/b/c", "n").verb == verb


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("what", ["exec", "attach", "portForward", "run", "cri"])
def test_whatever_runs_something_needs_create(method: str, what: str) -> None:
    assert attributes(method, f"/{what}/a/b/c", "n") == Attributes("create", "n", ("proxy",))
    assert attributes(method, f"/{what}/{{namespace}}/{{pod}}", "n").verb == "create"


@given(st.text(), st.text(), st.text())
def test_there_is_always_something_to_be_allowed(method: str, path: str, node: str) -> None:
    wanted = attributes(method, path, node)
    assert wanted.subresources and all(wanted.subresources)
    assert wanted.node == node


@given(st.sampled_from(["exec", "attach", "portForward", "metrics", "pods"]), st.text())
def test_what_follows_the_first_part_changes_nothing(first: str, rest: str) -> None:
    assert attributes("GET", f"/{first}/{rest}", "n") == attributes("GET", f"/{first}", "n")
