"""The OpenAPI document of the kubelet API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).parents[3] / "docs" / "kubelet-openapi.yaml"
#: All that OpenAPI can name.
METHODS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))


def document(*, system_logs: bool = False) -> dict[str, Any]:
    """`system_logs`: of an agent that was asked to show a folder."""
    found: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    shown = found.pop("x-system-logs")
    if system_logs:
        found["paths"].update(shown)
    return found
