"""Turns a pool's typed refusal into what a Pod's status and events say. Pure.

What the agent itself can tell it has told before (`admitter.py`). Where a kubelet has a reason of
its own for a field, that is used.

=================  ==========================  ===============================================
the pool says      the Pod                     as a kubelet does for
=================  ==========================  ===============================================
RETRYABLE          waits, is tried again       a sandbox that could not be created
NO_CAPACITY        Failed, OutOf<resource>     resources that do not fit at admission
 … of field cell   Failed, NodeShutdown        a node that is shut down
UNSUPPORTED_FIELD  Failed, UnsupportedField    its admission handlers, with SysctlForbidden and
                                               AppArmor as theirs
REFUSED            Failed, PoolRefused         the same
NOT_FOUND          waits, is tried again       (only an update can meet it)
=================  ==========================  ===============================================
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from vknode.pool.errors import NO_CAPACITY, REFUSED, UNSUPPORTED_FIELD, PoolFailure
from vknode.translate.admission import SYSCTL_FORBIDDEN
from vknode.translate.paths import pool_path_to_pod_path

UNSUPPORTED = "UnsupportedField"
POOL_REFUSED = "PoolRefused"

_SYSCTL = re.compile(r"security\.sysctls\[[\"']?([^\"'\]]+)")
_APP_ARMOR = re.compile(r"security\.app_armor\b")

_RESOURCE = re.compile(r"(?:requests|limits)\[?[.\"']?([a-z0-9./-]+)")


class Rejection(NamedTuple):
    """The Pod fails for good."""

    reason: str
    message: str


def rejection(pod: dict[str, Any], failure: PoolFailure) -> Rejection | None:
    """None if trying again can help."""
    if failure.kind == NO_CAPACITY and failure.field == "cell":
        return Rejection("NodeShutdown", "Pod was rejected as the node is shutting down.")
    if failure.kind == NO_CAPACITY:
        return Rejection(f"OutOf{_resource(failure)}", failure.message)
    if failure.kind not in (REFUSED, UNSUPPORTED_FIELD):
        return None
    message = failure.message
    if failure.kind == UNSUPPORTED_FIELD:
        if match := _SYSCTL.match(failure.field):
            return Rejection(SYSCTL_FORBIDDEN, f'forbidden sysctl: "{match[1]}" not allowlisted')
        if _APP_ARMOR.search(failure.field):
            return Rejection("AppArmor", f"Cannot enforce AppArmor: {message}")
    if failure.field:
        message = f"{pool_path_to_pod_path(pod, failure.field)}: {message}"
    if failure.kind == UNSUPPORTED_FIELD:
        return Rejection(UNSUPPORTED, message)
    return Rejection(POOL_REFUSED, message)


def _resource(failure: PoolFailure) -> str:
    """The resource's name where the pool told it, as in a kubelet's OutOfcpu."""
    match = _RESOURCE.search(failure.field)
    if match:
        return match[1]
    if failure.field in ("cpu", "memory", "pods", "ephemeral-storage"):
        return failure.field
    return "Capacity"
