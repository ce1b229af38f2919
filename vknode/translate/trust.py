"""Cluster trust bundles: which of them a projected volume selects, and the file they make. Pure.

As pkg/kubelet/clustertrustbundle of 1.37 does it: all certificates of the selected bundles once
each, without anything else that a PEM file may hold. A kubelet shuffles them, so that nobody
relies on an order; here they are sorted, so that the same bundles are the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vknode.translate.facts import Json, Missing, TrustNeed

_BLOCK = re.compile(
    r"-----BEGIN ([^\n-]+)-----[ \t]*\r?\n(?:[^\n:]+:[^\n]*\n)*(.*?)-----END \1-----", re.DOTALL
)
_LINE = 64

NO_API = "the API server has no ClusterTrustBundles"
NOT_SYNCED = "ClusterTrustBundle informer has not yet synced"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What matters of one ClusterTrustBundle; `certificates` are DER."""

    name: str
    signer: str
    labels: Mapping[str, str]
    certificates: frozenset[bytes]


def trust_need(source: Json) -> TrustNeed:
    """The key under which `Resolved.trust` has the content of a projection."""
    selector = source.get("labelSelector")
    return TrustNeed(
        name=source.get("name") or "",
        signer=source.get("signerName") or "",
        selector=None if selector is None else json.dumps(selector, sort_keys=True),
        optional=bool(source.get("optional")),
    )


def resolve(need: TrustNeed, bundles: Mapping[str, Bundle]) -> str | Missing:
    """The file's content; where it must not be empty and would be, why it is."""
    chosen: list[Bundle]
    if need.name:
        found = bundles.get(need.name)
        chosen = [] if found is None else [found]
        problem = (
            "while getting ClusterTrustBundle: "
            f'clustertrustbundle.certificates.k8s.io "{need.name}" not found'
        )
    elif need.signer:
        chosen = [
            bundle
            for bundle in bundles.values()
            if bundle.signer == need.signer and _matches(need.selector, bundle.labels)
        ]
        problem = "combination of signerName and labelSelector matched zero ClusterTrustBundles"
    else:
        return Missing(
            "ClusterTrustBundle projection requires either name or signerName to be set",
            not_found=False,
        )
    if not chosen:
        return "" if need.optional else Missing(problem)
    return "".join(map(_pem, sorted(frozenset().union(*(one.certificates for one in chosen)))))


def concerns(need: TrustNeed, bundle: Bundle) -> bool:
    """Whether a change of the bundle may change what is needed (labels may have changed too)."""
    return need.name == bundle.name if need.name else need.signer == bundle.signer


def chain(text: str) -> str:
    """All PEM blocks in order, without anything else that the text may hold."""
    return "".join(map(_pem, _blocks(text)))


def certificates(text: str) -> frozenset[bytes]:
    """The DER content of all PEM blocks; what cannot be read is left out, as Go's decoder does."""
    return frozenset(_blocks(text))


def _blocks(text: str) -> Iterable[bytes]:
    for match in _BLOCK.finditer(text):
        try:
            yield base64.b64decode("".join(match[2].split()), validate=True)
        except binascii.Error:
            continue


def _pem(der: bytes) -> str:
    data = base64.b64encode(der).decode()
    lines = (data[start : start + _LINE] for start in range(0, len(data), _LINE))
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


def _matches(selector: str | None, labels: Mapping[str, str]) -> bool:
    """A LabelSelector as JSON; None matches nothing, an empty one everything."""
    if selector is None:
        return False
    parsed: Json = json.loads(selector)
    wanted = parsed.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_fulfils(one, labels) for one in parsed.get("matchExpressions") or ())


def _fulfils(requirement: Json, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement["key"])
    match requirement["operator"]:
        case "In":
            return value is not None and value in (requirement.get("values") or ())
        case "NotIn":
            return value is None or value not in (requirement.get("values") or ())
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False
