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
    `extended_resources` are the pool's names of extended resources, by Kubernetes' own.

    Of the Pod's privileges: below `host_paths` its hostPath volumes must lie once their links
    are resolved (empty: the pool alone decides), and with `seccomp_default` its containers that
    name no seccomp profile get the runtime's.
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
    extended_resources: Mapping[str, str] = field(default_factory=dict)
    host_paths: Sequence[str] = ()
    seccomp_default: bool = False


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
class TrustNeed:
    """What one clusterTrustBundle projection selects: by `name`, or by `signer` and `selector`
    (a LabelSelector as JSON; None matches nothing)."""

    name: str
    signer: str
    selector: str | None
    optional: bool


@dataclass(frozen=True, slots=True)
class CertificateNeed:
    """One podCertificate projection: which key and certificate, for whom. `volume` and `index`
    tell the projections of a Pod apart."""

    volume: str
    index: int
    signer: str
    key_type: str
    max_expiration_seconds: int | None
    annotations: tuple[tuple[str, str], ...]
    service_account: str
    pod_name: str
    pod_uid: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key (PKCS#8) and its certificate chain, both PEM."""

    key: str = field(repr=False)
    chain: str


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
    trust: Mapping[TrustNeed, str | Missing] = field(default_factory=dict, repr=False)
    certificates: Mapping[CertificateNeed, Credential | Missing] = field(
        default_factory=dict, repr=False
    )


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """`now` is an RFC 3339 time in whole seconds; `host_ips` the Node's, primary first."""

    now: str
    host_ips: Sequence[str]


@lru_cache(maxsize=4096)
def rfc3339(seconds: int) -> str:
    """A Unix time as the API server writes it: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
