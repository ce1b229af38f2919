"""manifests/monitoring as kubectl renders it fits the agent that manifests/base installs."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.monitoring.documents import MANIFESTS, ROOT, dashboard, rule_file
from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.provide import require

Documents = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rendered() -> Documents:
    """By kind; each is there once."""
    try:
        kubectl = require(["kubectl"])["kubectl"]
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    done = subprocess.run(
        [str(kubectl), "kustomize", str(MANIFESTS)], capture_output=True, text=True, check=True
    )
    found = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert sorted(found) == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    return found


def test_the_pod_monitor_finds_the_agents_metrics(rendered: Documents) -> None:
    deployment = yaml.safe_load((ROOT / "manifests/base/agent-deployment.yaml").read_text())
    monitor = rendered["PodMonitor"]
    assert monitor["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = {
        port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]
    }
    config = yaml.safe_load((ROOT / "manifests/base/agent.yaml").read_text())
    assert config["metrics"]["listen"] == f"0.0.0.0:{ports[endpoint['port']]}"


def test_grafana_and_prometheus_get_what_is_tested(rendered: Documents) -> None:
    assert rendered["PrometheusRule"]["spec"] == rule_file()
    shown = rendered["ConfigMap"]
    assert shown["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(shown["data"]["dashboard.json"]) == dashboard()
