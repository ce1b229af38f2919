"""The dashboard shows something in every panel for what a real agent serves."""

from __future__ import annotations

import re

import pytest

from tests.monitoring.documents import (
    alerts,
    dashboard,
    dashboard_expressions,
)
from tests.monitoring.promtool import Promtool, Recording
from tests.monitoring.scene import Scene
from vknode.agent.metric_families import ALL, Kind
from vknode.pool.errors import RETRYABLE

#: Names of metrics in an expression: ours, and those of the process.
NAMES = re.compile(r"\b(?:vknode|process|python)_[a-z_]+\b")


def names_that_may_be_used(text: str) -> set[str]:
    served = set(re.findall(r"^([a-z_]+)(?:\{| )", text, re.MULTILINE))
    for one in ALL:
        if one.kind is Kind.HISTOGRAM:
            assert f"{one.name}_bucket" in served
    return served


async def test_alerts_and_dashboard_name_only_metrics_that_there_are(scene: Scene) -> None:
    known = names_that_may_be_used(scene.text())
    used = {
        where: set(NAMES.findall(expression))
        for where, expression in (
            *((rule["alert"], rule["expr"]) for rule in alerts()),
            *dashboard_expressions(),
        )
    }
    for where, names in used.items():
        assert names, f"{where} asks for nothing of ours"
        assert names <= known, where


async def test_nothing_that_is_served_is_shown_nowhere(scene: Scene) -> None:
    """Some are for looking things up only; each of them is named here."""
    shown = {
        name
        for expression in (
            *(rule["expr"] for rule in alerts()),
            *(expression for _, expression in dashboard_expressions()),
        )
        for name in NAMES.findall(expression)
    }
    left = {
        one.name for one in ALL if not {one.name, f"{one.name}_bucket", f"{one.name}_count"} & shown
    }
    assert left == {
        "vknode_leases",
        "vknode_node_patches_total",
        "vknode_node_sync_failures_total",
        "vknode_nodes_created_total",
        "vknode_nodes_deleted_total",
        "vknode_watch_undecodable_objects_total",
        "vknode_watched_pods",
    }


async def test_every_panel_has_data(scene: Scene, promtool: Promtool) -> None:
    recording = Recording()
    for minute in range(12):
        scene.a_minute()
        scene.metrics.refused("PoolRefused")
        scene.metrics.pool_error("az1", RETRYABLE)
        if minute % 3 == 0:
            scene.events.stats.dropped_full += 1
        recording.scrape(scene.text())
    promtool.test(
        {
            "input_series": recording.series(),
            "promql_expr_test": [
                {
                    "expr": f"count({expression}) > bool 0",
                    "eval_time": "10m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
                for _, expression in dashboard_expressions()
            ],
        }
    )


def test_panels_are_laid_out_and_explained() -> None:
    found = dashboard()
    seen: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & seen, panel["title"]
        seen |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"]
            assert all(target["expr"] for target in panel["targets"])
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("variable", ["datasource", "job", "instance"])
def test_its_variables_are_declared(variable: str) -> None:
    assert variable in {one["name"] for one in dashboard()["templating"]["list"]}
