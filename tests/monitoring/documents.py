"""What an operator is given: the rules, the dashboard, the page of the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vknode.agent.metric_families import as_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "monitoring.md"
MANIFESTS = ROOT / "manifests" / "monitoring"
BEGIN, END = "<!-- metrics -->\n", "<!-- /metrics -->\n"

Rule = dict[str, Any]


def rule_file() -> dict[str, Any]:
    """The part of the PrometheusRule that Prometheus itself reads."""
    spec: dict[str, Any] = yaml.safe_load((MANIFESTS / "alerts.yaml").read_text())["spec"]
    return spec


def alerts() -> list[Rule]:
    return [rule for group in rule_file()["groups"] for rule in group["rules"]]


def named(alert: str) -> list[Rule]:
    """All rules of an alert."""
    return [rule for rule in alerts() if rule["alert"] == alert]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MANIFESTS / "dashboard.json").read_text())
    return found


def dashboard_expressions() -> list[tuple[str, str]]:
    """(panel, expression) with Grafana's variables filled in."""
    return [
        (panel["title"], fill(target["expr"]))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def fill(expression: str) -> str:
    for variable, value in (("$__rate_interval", "2m"), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(variable, value)
    return expression


def with_table(page: str) -> str:
    """The page with the table of metrics as the code has it."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}{as_table()}{END}{tail}"
