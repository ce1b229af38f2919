"""The agent's rights: the table in the docs, the manifests, and what the API server has seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).resolve().parent.parent.parent
TABLE = FOLDER / "docs" / "agent-rights.md"
AGENT = "system:serviceaccount:vknode-system:vknode-agent"
NODE = "system:node:"
#: Requests of the agent, not of a test that uses its credentials.
USER_AGENT = "vknode-agent"

OWN, AS_NODE, ANYBODY = "In its own name", "As one of its nodes", "What everybody may"


class Right(NamedTuple):
    """`resource` is RESOURCE[/SUBRESOURCE][.GROUP], as kubectl writes it, or a path."""

    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


class Request(NamedTuple):
    """What the agent asked, and in whose name: `user` is empty for its own."""

    right: Right
    user: str
    groups: tuple[str, ...]
    namespace: str
    name: str


def named(resource: str, group: str = "", subresource: str = "") -> str:
    inner = f"{resource}/{subresource}" if subresource else resource
    return f"{inner}.{group}" if group else inner


# -- the table -------------------------------------------------------------------------------


def table(text: str | None = None) -> dict[str, dict[Right, list[str]]]:
    """By heading, each right with the other columns of its row."""
    found: dict[str, dict[Right, list[str]]] = {}
    heading = ""
    for line in (TABLE.read_text() if text is None else text).splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| verb "):
            verb, resource, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            right = Right(verb, resource)
            rows = found.setdefault(heading, {})
            assert right not in rows, f"{right} is listed twice"
            assert rest[-1], f"{right} has no reason"
            rows[right] = rest
    return found


# -- the manifests ---------------------------------------------------------------------------


#: Rules of Kubernetes' own roles that the manifests bind (plugin/pkg/auth/authorizer/rbac/
#: bootstrappolicy/policy.go).
_BUILT_IN = {
    "system:auth-delegator": [
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["tokenreviews"],
            "verbs": ["create"],
        },
        {
            "apiGroups": ["authorization.k8s.io"],
            "resources": ["subjectaccessreviews"],
            "verbs": ["create"],
        },
    ]
}


def granted(folder: Path) -> dict[Right, list[str]]:
    """What the roles there that are bound to the agent allow, with what they limit it to."""
    documents = [
        document
        for file in sorted(folder.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document
    ]
    bound = {
        document["roleRef"]["name"]
        for document in documents
        if document["kind"].endswith("Binding")
        and any(one["name"] == "vknode-agent" for one in document["subjects"])
    }
    found: dict[Right, list[str]] = {}
    roles = {one["metadata"]["name"] for one in documents if one["kind"].endswith("Role")}
    for role in bound - roles:
        found.update(_rules(_BUILT_IN[role]))  # KeyError: nobody has looked at what that grants
    for document in documents:
        if document["kind"] in ("Role", "ClusterRole") and document["metadata"]["name"] in bound:
            where = document["metadata"].get("namespace", "")
            for right, names in _rules(document["rules"]):
                assert right not in found, f"{right} is granted twice"
                found[right] = [f"namespace {where}"] if where else list(names)
    return found


def _rules(rules: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Right, list[str]]]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                plain, _, sub = resource.partition("/")
                for verb in rule["verbs"]:
                    yield Right(verb, named(plain, group, sub)), rule.get("resourceNames", [])


# -- the audit log ---------------------------------------------------------------------------


def requests(log: Path) -> set[Request]:
    """What the agent asked so far, by an audit log of level Metadata."""
    found: set[Request] = set()
    if not log.exists():
        return found  # a cluster without an agent
    with log.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # still being written
            entry = json.loads(line)
            if entry["user"]["username"] != AGENT:
                continue
            if not entry.get("userAgent", "").startswith(USER_AGENT):
                continue
            # An API server that has just started does not know the roles yet: what was meant to
            # be asked as a node is then refused, and logged, without the node.
            refusal = (entry.get("responseStatus") or {}).get("message", "")
            if "cannot impersonate" in refusal:
                continue
            found.add(_request(entry))
    return found


def _request(entry: Mapping[str, Any]) -> Request:
    reference = entry.get("objectRef")
    other = entry.get("impersonatedUser") or {}
    groups = tuple(sorted(other.get("groups") or ()))
    user = other.get("username", "")
    if reference is None:
        path = entry["requestURI"].partition("?")[0]
        return Request(Right(entry["verb"], path), user, groups, "", "")
    right = Right(
        entry["verb"],
        named(
            reference["resource"], reference.get("apiGroup", ""), reference.get("subresource", "")
        ),
    )
    return Request(right, user, groups, reference.get("namespace", ""), reference.get("name", ""))


def unlisted(seen: Iterable[Request], nodes: Iterable[str]) -> list[str]:
    """Requests that the table does not have, each with why. `nodes` are the agent's own."""
    rows = table()
    users = {f"{NODE}{node}" for node in nodes}
    return sorted({problem for one in seen if (problem := _problem(one, rows, users))})


def _problem(one: Request, rows: Mapping[str, Mapping[Right, list[str]]], users: set[str]) -> str:
    if one.user:
        # The API server adds system:authenticated by itself.
        if one.user not in users or "system:nodes" not in one.groups:
            return f"{one.right} as {one.user} of {one.groups}"
        return "" if one.right in rows[AS_NODE] else f"{one.right} as a node"
    if one.right in rows[OWN]:
        only = rows[OWN][one.right][0]
        if only and only not in (one.name, f"namespace {one.namespace}"):
            return f"{one.right} of {one.namespace}/{one.name}, not only {only}"
        return ""
    for listed in rows[ANYBODY]:
        stem = listed.resource.removesuffix("*")
        if listed.verb == one.right.verb and one.right.resource.startswith(stem):
            return ""
    return f"{one.right} in its own name"


def never_made(seen: Iterable[Request]) -> list[str]:
    """Rows of the table that no request stands for. Impersonating is seen by what it is for."""
    own = {one.right for one in seen if not one.user}
    as_node = {one.right for one in seen if one.user}
    missing = []
    for right in table()[OWN]:
        made = bool(as_node) if right.verb == "impersonate" else right in own
        if not made:
            missing.append(f"{right} in its own name")
    missing += [f"{right} as a node" for right in table()[AS_NODE] if right not in as_node]
    for right in table()[ANYBODY]:
        stem = right.resource.removesuffix("*")
        if not any(one.verb == right.verb and one.resource.startswith(stem) for one in own):
            missing.append(f"{right} as anybody")
    return missing
