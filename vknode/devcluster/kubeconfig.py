"""Writes kubeconfig files: one cluster, one user, one context, everything embedded."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from vknode.devcluster.pki import KeyPair, write_private


def write_kubeconfig(
    path: Path,
    *,
    server: str,
    ca_pem: bytes,
    user: str,
    client: KeyPair | None = None,
    token: str | None = None,
) -> Path:
    """Write a kubeconfig for `server` that authenticates by client certificate or token.

    Embedded rather than by file name, so that it can be copied away alone."""
    if (client is None) == (token is None):
        raise ValueError("a kubeconfig needs either a client certificate or a token")
    credentials: dict[str, Any]
    if client is not None:
        credentials = {
            "client-certificate-data": _b64(client.cert.read_bytes()),
            "client-key-data": _b64(client.key.read_bytes()),
        }
    else:
        credentials = {"token": token}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "vknode-dev",
                "cluster": {"server": server, "certificate-authority-data": _b64(ca_pem)},
            }
        ],
        "users": [{"name": user, "user": credentials}],
        "contexts": [
            {"name": "vknode-dev", "context": {"cluster": "vknode-dev", "user": user}},
        ],
        "current-context": "vknode-dev",
    }
    return write_private(path, yaml.safe_dump(document, sort_keys=False).encode())


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
