"""The agent's configuration under a kubelet's words, for /configz. Pure.

Only what is so for a virtual node is told: what a cell's own host decides (cgroups, eviction,
image collection, log rotation) is its pool's, and a value of ours would be a guess. No file names:
whoever may read this need not know where keys lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vknode.agent.config import AgentConfig
from vknode.compose.node_usage import whole_number

# The agent's own heartbeat (nodes.REFRESH_SECONDS), in Go's notation of durations.
_STATUS_REPORT = "5m0s"


def kubelet_configuration(config: AgentConfig, capacity: Mapping[str, str]) -> dict[str, Any]:
    """As KubeletConfiguration of kubelet.config.k8s.io/v1beta1; `capacity` is the cell's."""
    kubelet = config.kubelet
    settings: dict[str, Any] = {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "enableServer": True,
        "address": kubelet.address,
        "port": kubelet.port,
        "readOnlyPort": 0,
        "clusterDomain": kubelet.cluster_domain,
        "clusterDNS": list(kubelet.cluster_dns),
        "nodeStatusReportFrequency": _STATUS_REPORT,
        "nodeLeaseDurationSeconds": config.lease.duration,
        "registerNode": True,
        "registerWithTaints": [
            {"key": taint.key, "value": taint.value, "effect": taint.effect}
            for taint in config.taints
        ],
        "enableDebuggingHandlers": True,
        "enableSystemLogHandler": kubelet.system_logs is not None,
        "enableSystemLogQuery": False,
        "enableProfilingHandler": False,
        "enableDebugFlagsHandler": False,
        "staticPodPath": "",
    }
    if (pods := whole_number(capacity, "pods")) is not None:
        settings["maxPods"] = pods
    return settings
