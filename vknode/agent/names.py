"""Names and labels that vknode puts on Kubernetes objects, and the rules for names."""

from __future__ import annotations

import re

# The value is the agent's name: an agent adopts and changes only Nodes that carry its own.
LABEL_MANAGED_BY = "vknode.dev/managed-by"
LABEL_POOL = "vknode.dev/pool"
# Annotations, because a cell's name need not be a label value.
ANNOTATION_CELL = "vknode.dev/cell"

MAX_NODE_NAME = 63

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def is_dns_label(text: str) -> bool:
    """DNS-1123 label: up to 63 of a-z, 0-9 and '-', not at the ends."""
    return _DNS_LABEL.fullmatch(text) is not None


def is_dns_name(text: str) -> bool:
    """DNS-1123 subdomain: labels joined with dots, up to 253 characters."""
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """A DNS-1123 subdomain that also fits the hostname label (63 characters)."""
    return len(text) <= MAX_NODE_NAME and _DNS_SUBDOMAIN.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    """`[prefix/]name` as Kubernetes validates label and taint keys."""
    prefix, slash, name = text.rpartition("/")
    if slash and (len(prefix) > 253 or _DNS_SUBDOMAIN.fullmatch(prefix) is None):
        return False
    return _LABEL_NAME.fullmatch(name) is not None


def is_label_value(text: str) -> bool:
    return _LABEL_VALUE.fullmatch(text) is not None


def is_kubernetes_label(key: str) -> bool:
    """Whether the key lies under kubernetes.io or k8s.io, which Kubernetes keeps for itself."""
    prefix, slash, _ = key.rpartition("/")
    return bool(slash) and (
        prefix in ("kubernetes.io", "k8s.io") or prefix.endswith((".kubernetes.io", ".k8s.io"))
    )


# Labels that say what the cell is; neither configuration nor a pool may say otherwise.
AGENT_LABELS = frozenset(
    (
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "type",
        LABEL_MANAGED_BY,
        LABEL_POOL,
    )
)
