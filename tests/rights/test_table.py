"""docs/agent-rights.md says what the manifests grant, no more and no less."""

from __future__ import annotations

import pytest

from tests.support.rights import AS_NODE, OWN, Request, Right, granted, table, unlisted
from vknode.devcluster.identity import manifests_folder

NODES = ("az1-a", "az1-b")
GROUPS = ("system:authenticated", "system:nodes")


def test_the_table_is_what_the_manifests_grant() -> None:
    listed = {right: columns[0] for right, columns in table()[OWN].items()}
    manifests = granted(manifests_folder() / "base" / "rbac")
    assert set(listed) == set(manifests)
    for right, limits in manifests.items():
        if right == Right("impersonate", "users"):
            assert limits and all(name.startswith("system:node:") for name in limits)
        else:
            assert listed[right] == ", ".join(limits), right


def test_nothing_of_what_pods_refer_to_is_granted() -> None:
    for right in granted(manifests_folder() / "base" / "rbac"):
        plain = right.resource.partition("/")[0]
        assert plain not in ("secrets", "configmaps", "serviceaccounts"), right
        assert right.verb not in ("*", "deletecollection", "bind", "escalate"), right
        assert "*" not in right.resource, right
        if plain == "pods":
            assert right.verb in ("get", "list", "watch"), right
    assert Right("get", "secrets") in table()[AS_NODE]


def own(verb: str, resource: str, namespace: str = "", name: str = "") -> Request:
    return Request(Right(verb, resource), "", (), namespace, name)


def as_node(
    verb: str, resource: str, node: str = "az1-a", groups: tuple[str, ...] = GROUPS
) -> Request:
    return Request(Right(verb, resource), f"system:node:{node}", groups, "default", "x")


@pytest.mark.parametrize(
    "listed",
    [
        own("watch", "pods"),
        own("get", "namespaces", name="kube-system"),
        own("update", "leases.coordination.k8s.io", "kube-node-lease", "az1-a"),
        own("get", "/apis/certificates.k8s.io/v1"),
        as_node("get", "secrets"),
        as_node("patch", "pods/status", "az1-b"),
    ],
)
def test_what_is_listed_passes(listed: Request) -> None:
    assert unlisted([listed], NODES) == []


@pytest.mark.parametrize(
    "other",
    [
        own("get", "secrets"),
        own("list", "configmaps"),
        own("patch", "pods/status"),
        own("delete", "pods"),
        own("get", "namespaces", name="default"),
        own("update", "leases.coordination.k8s.io", "kube-system", "az1-a"),
        own("get", "/metrics"),
        as_node("get", "secrets", "az9-a"),
        as_node("get", "secrets", groups=("system:masters",)),
        as_node("delete", "nodes"),
        as_node("create", "pods"),
    ],
)
def test_what_is_not_listed_is_found(other: Request) -> None:
    (problem,) = unlisted([other, own("watch", "pods")], NODES)
    assert str(other.right) in problem
