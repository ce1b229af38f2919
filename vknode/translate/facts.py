"""What the translation is told besides the Pod: the node's facts and looked-up objects."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vknode.pool.v1.spec_pb2 import DnsConfig

# A decoded JSON object of the Kubernetes API.
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The virtual node a Pod is bound to.

    `runtime_handler` is the handler of the Pod's RuntimeClass ("" for none). `host_dns`
    is the resolver configuration of the cell's host, where the installation knows it;
    None leaves it to the pool. `allocatable` is Node.status.allocatable.
    """

    cell: str
    host_ips: Sequence[str]
    tenant: str = "default"
    runtime_handler: str = ""
    network: str = ""
    cluster_domain: str = "cluster.local"
    cluster_dns: Sequence[str] = ()
    host_dns: DnsConfig | None = None
    allocatable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenNeed:
    """One service account token, bound to the Pod.

    `audience` "" means the API server's own audience (an empty list in TokenRequest).
    """

    service_account: str
    audience: str
    expiration_seconds: int
    pod_name: str
    pod_uid: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What a lookup gave instead of an object; `message` is the API server's own.

    `optional` references only forgive `not_found`, as a kubelet does.
    """

    message: str
    not_found: bool = True


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything that `needs(pod)` named, by name. Never log it: it holds secrets."""

    config_maps: Mapping[str, Json | Missing] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, Json | Missing] = field(default_factory=dict, repr=False)
    tokens: Mapping[TokenNeed, str | Missing] = field(default_factory=dict, repr=False)
    services: Sequence[Json] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """`now` is an RFC 3339 time in whole seconds; `host_ips` the Node's, primary first."""

    now: str
    host_ips: Sequence[str]


@lru_cache(maxsize=4096)
def rfc3339(seconds: int) -> str:
    """A Unix time as the API server writes it: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
