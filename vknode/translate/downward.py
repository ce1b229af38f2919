"""The downward API: fieldRef and resourceFieldRef, for environment and volumes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from vknode.translate.facts import Json, NodeFacts
from vknode.translate.quantity import ZERO, Quantity

_SUBSCRIPT = re.compile(r"(metadata\.(?:labels|annotations))\['(.*)'\]", re.DOTALL)
_DEFAULTED_LIMITS = ("cpu", "memory", "ephemeral-storage")


class UnsupportedFieldError(ValueError):
    """A selector that even a kubelet does not know; the text names it."""


def pod_ip_token(pod: Json) -> str:
    """Stands for the first Pod IP until the pool knows it (SandboxSpec.pod_ip_token)."""
    return f"@vknode-pod-ip:{pod['metadata']['uid']}@"


def pod_ips_token(pod: Json) -> str:
    return f"@vknode-pod-ips:{pod['metadata']['uid']}@"


def metadata_field(pod: Json, path: str) -> str:
    """What a downwardAPI volume may show: metadata only."""
    metadata = pod["metadata"]
    match = _SUBSCRIPT.fullmatch(path)
    if match is not None:
        found = metadata.get(match[1].removeprefix("metadata.")) or {}
        return str(found.get(match[2], ""))
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(metadata.get(path.removeprefix("metadata."), ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return _format_map(metadata.get(path.removeprefix("metadata.")) or {})
    raise UnsupportedFieldError(f"unsupported fieldPath: {path}")


def env_field(pod: Json, path: str, node: NodeFacts) -> str:
    """A fieldRef in the environment. IPs that only the pool learns come as tokens."""
    match path:
        case "status.podIP":
            return pod_ip_token(pod)
        case "status.podIPs":
            return pod_ips_token(pod)
        case "status.hostIP":
            return node.host_ips[0]
        case "status.hostIPs":
            return ",".join(node.host_ips)
        case "spec.nodeName" | "spec.host":
            return str(pod["spec"].get("nodeName", ""))
        case "spec.serviceAccountName":
            return str(pod["spec"].get("serviceAccountName", ""))
    return metadata_field(pod, path)


def _format_map(values: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={_quote(values[key])}" for key in sorted(values))


def _quote(text: str) -> str:
    """As Go's strconv.Quote: printable characters stay, others are escaped."""
    if text.isascii() and text.isprintable():
        return json.dumps(text)
    escapes = {
        '"': '\\"',
        "\\": "\\\\",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        "\v": "\\v",
    }
    parts = ['"']
    for char in text:
        if char in escapes:
            parts.append(escapes[char])
        elif char.isprintable():
            parts.append(char)
        elif ord(char) < 0x80:
            parts.append(f"\\x{ord(char):02x}")
        elif ord(char) < 0x10000:
            parts.append(f"\\u{ord(char):04x}")
        else:
            parts.append(f"\\U{ord(char):08x}")
    parts.append('"')
    return "".join(parts)


def resource_field(
    pod: Json, selector: Json, container: Json | None, node: NodeFacts, *, pod_level: bool
) -> str:
    """A resourceFieldRef, in units of its divisor, rounded up.

    A limit that is not set is the node's allocatable amount, or the Pod-level limit where
    `pod_level` is set (a kubelet looks at those only for the environment; there it gives no
    defaults to an init container that is named).
    """
    name = selector.get("containerName") or ""
    defaulted = True
    if name or container is None:
        container = _find(pod, name)
        main = {one["name"] for one in pod["spec"]["containers"]}
        defaulted = not pod_level or name in main
    kind, _, resource = str(selector["resource"]).partition(".")
    if kind not in ("limits", "requests") or not (
        resource in _DEFAULTED_LIMITS or resource.startswith("hugepages-")
    ):
        raise UnsupportedFieldError(f"unsupported container resource : {selector['resource']}")
    amounts = (container.get("resources") or {}).get(kind) or {}
    amount = Quantity.parse(str(amounts[resource])) if resource in amounts else ZERO
    if defaulted and not amount and kind == "limits" and resource in _DEFAULTED_LIMITS:
        text = node.allocatable.get(resource)
        own = ((pod["spec"].get("resources") or {}).get("limits") or {}).get(resource)
        if pod_level and text is not None and own and resource != "ephemeral-storage":
            text = own
        amount = Quantity.parse(str(text)) if text is not None else ZERO
    divisor = Quantity.parse(str(selector.get("divisor") or "1")) or Quantity.parse("1")
    if resource == "cpu":
        return str(-(-amount.milli_value() // divisor.milli_value()))
    return str(-(-amount.value() // divisor.value()))


def _find(pod: Json, name: str) -> Json:
    for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
        if container["name"] == name:
            found: Json = container
            return found
    raise UnsupportedFieldError(f"container {name} not found")
