"""The agent as the development cluster starts it: one configuration file, one program."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vknode.devcluster.pki import Authority, KeyPair, write_private
from vknode.devcluster.ports import pick_port

#: Where the agent is asked if the cluster has no network of its own. An API server does not
#: proxy requests to a node there (`kubectl get --raw /api/v1/nodes/NAME/proxy/…`).
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class AgentFiles:
    """What the agent is started with."""

    config: Path
    kubelet_port: int

    @property
    def command(self) -> list[str]:
        """The agent's argv."""
        return [sys.executable, "-m", "vknode", "agent", "--config", str(self.config)]


def serving_certificate(authority: Authority, address: str = LOOPBACK) -> KeyPair:
    """The kubelet API's certificate, for the address that all nodes announce; the API
    server checks it against --kubelet-certificate-authority."""
    return authority.issue("agent-serving", "vknode-agent", ips=[address])


def write_config(
    path: Path,
    *,
    kubeconfig: Path,
    pools: Mapping[str, str],
    serving: KeyPair,
    client_ca: Path,
    address: str = LOOPBACK,
    kubelet_port: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> AgentFiles:
    """Write the agent's configuration. `pools` maps pool names to endpoints; `overrides`
    replace its keys; a mapping replaces keys of the mapping that is there. Raises PortTaken
    if the wanted port is in use.

    The port is chosen here, not by the agent: a restarted agent must have it again, or
    the API server would look for it in vain until the nodes' status is written."""
    port = pick_port(kubelet_port, what="the agent's kubelet API", address=address)
    config: dict[str, Any] = {
        "kubeconfig": str(kubeconfig),
        "pools": [{"name": name, "endpoint": endpoint} for name, endpoint in pools.items()],
        "nodeNameTemplate": "{cell}",
        "kubelet": {
            "address": address,
            "port": port,
            "nodePorts": 0,
            "servingCert": str(serving.cert),
            "servingKey": str(serving.key),
            "clientCA": str(client_ca),
        },
        "metrics": {"listen": "127.0.0.1:0"},
        "logFormat": "console",
    }
    for key, value in (overrides or {}).items():
        there = config.get(key)
        if isinstance(there, dict) and isinstance(value, Mapping):
            there.update(value)
        else:
            config[key] = value
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())
    return AgentFiles(path, port)
