"""The agent's identity in the development cluster: the real manifests' rights, no more.

`manifests/base/rbac` is applied as a platform engineer would apply it, with the
nodes' names filled in; the agent gets a token of its ServiceAccount and nothing
else. A right that is missing there is missing here too, and some test fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from vknode.devcluster.kubeconfig import write_kubeconfig
from vknode.devcluster.kubectl import Kubectl

NAMESPACE = "vknode-system"
SERVICE_ACCOUNT = "vknode-agent"
IMPERSONATION = "vknode-agent-nodes"
#: As long as the cluster's certificates: nobody renews it here. In a real cluster the
#: kubelet refreshes the agent's projected token.
TOKEN_LIFETIME = "8760h"


def manifests_folder() -> Path:
    """`manifests/`: beside the package in a checkout, inside it in a wheel.

    Raises FileNotFoundError if there is neither."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "manifests", package.parent / "manifests"):
        if (folder / "base" / "rbac").is_dir():
            return folder
    raise FileNotFoundError(f"manifests/base/rbac is neither in {package} nor beside it")


def rbac_documents(rendered: str, nodes: Iterable[str]) -> list[dict[str, Any]]:
    """The rendered RBAC manifests with the rule that lets the agent act as its nodes
    listing exactly `nodes`. Without nodes that rule is dropped."""
    names = [f"system:node:{node}" for node in nodes]
    documents = [one for one in yaml.safe_load_all(rendered) if one]
    for document in documents:
        if document["kind"] == "ClusterRole" and document["metadata"]["name"] == IMPERSONATION:
            rules = document["rules"]
            for rule in rules:
                if rule["resources"] == ["users"]:
                    rule["resourceNames"] = names
            if not names:
                # An empty resourceNames would mean "any": the opposite of what is meant.
                document["rules"] = [rule for rule in rules if rule["resources"] != ["users"]]
    return documents


async def grant(
    kubectl: Kubectl, path: Path, *, server: str, ca_pem: bytes, nodes: Iterable[str]
) -> Path:
    """Apply the agent's rights and write its kubeconfig, for `server`, to `path`.

    Raises KubectlFailed."""
    rendered = await kubectl.call("kustomize", str(manifests_folder() / "base" / "rbac"))
    documents = yaml.safe_dump_all(rbac_documents(rendered, nodes)).encode()
    await kubectl.call("apply", "--server-side", "-f", "-", input=documents)
    token = await kubectl.call(
        "create", "token", SERVICE_ACCOUNT, "-n", NAMESPACE, f"--duration={TOKEN_LIFETIME}"
    )
    return write_kubeconfig(
        path, server=server, ca_pem=ca_pem, user=SERVICE_ACCOUNT, token=token.strip()
    )
