"""Each alert fires on what a real agent serves when that happens, says what a person needs, was
silent before, and all are silent in health. Evaluated by Prometheus' own promtool."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.monitoring.cases import CASES, Case, Happens
from tests.monitoring.documents import PAGE, alerts, named, rule_file
from tests.monitoring.promtool import TARGET, Promtool, Recording
from tests.monitoring.scene import Scene

#: Minutes of health before something happens, and minutes that it lasts.
BEFORE, LASTS = 10, 40


def recorded(scene: Scene, happens: Happens | None = None) -> Recording:
    """Scrapes of `BEFORE` healthy minutes, and of those in which it happens."""
    recording = Recording()
    for minute in range(BEFORE + LASTS):
        scene.a_minute()
        if happens is not None and minute >= BEFORE:
            happens(scene)
        recording.scrape(scene.text())
    return recording


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{one.alert}-{one.happens.__name__}" for one in CASES]
)
async def test_it_fires(case: Case, scene: Scene, promtool: Promtool) -> None:
    recording = recorded(scene, case.happens)
    promtool.test(
        {
            "input_series": recording.series(),
            "alert_rule_test": [
                {"eval_time": f"{BEFORE - 1}m", "alertname": case.alert, "exp_alerts": []},
                {
                    "eval_time": f"{BEFORE + case.after}m",
                    "alertname": case.alert,
                    "exp_alerts": [case.expected()],
                },
            ],
        }
    )


def agent_down() -> dict[str, Any]:
    return {
        "exp_labels": {"severity": "critical"},
        "exp_annotations": dict(named("VknodeAgentDown")[0]["annotations"]),
    }


async def test_the_only_agent_that_is_gone_is_missed(scene: Scene, promtool: Promtool) -> None:
    recording = recorded(scene)
    for _ in range(10):
        recording.forget()
    end = BEFORE + LASTS
    promtool.test(
        {
            "input_series": recording.series(),
            "alert_rule_test": [
                {"eval_time": f"{end - 1}m", "alertname": "VknodeAgentDown", "exp_alerts": []},
                {
                    "eval_time": f"{end + 8}m",
                    "alertname": "VknodeAgentDown",
                    "exp_alerts": [agent_down()],
                },
            ],
        }
    )


async def test_one_of_several_agents_that_does_not_answer_is_missed(
    scene: Scene, promtool: Promtool
) -> None:
    recording = recorded(scene)
    for _ in range(10):
        recording.fail()
    other = [
        {
            "series": one["series"].replace(TARGET["instance"], "10.0.0.6:9464"),
            "values": "1x70",
        }
        for one in recording.series()
        if one["series"].startswith(("vknode_build_info", "up{"))
    ]
    expected = agent_down()
    expected["exp_labels"] |= TARGET
    promtool.test(
        {
            "input_series": recording.series() + other,
            "alert_rule_test": [
                {
                    "eval_time": f"{BEFORE + LASTS + 8}m",
                    "alertname": "VknodeAgentDown",
                    "exp_alerts": [expected],
                },
            ],
        }
    )


async def test_all_are_silent_in_health(scene: Scene, promtool: Promtool) -> None:
    recording = recorded(scene)
    promtool.test(
        {
            "input_series": recording.series(),
            "alert_rule_test": [
                {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
                for alert in sorted({rule["alert"] for rule in alerts()})
                for minute in (1, 20, BEFORE + LASTS - 1)
            ],
        }
    )


def test_every_rule_has_its_test_and_its_page() -> None:
    tested = {case.alert for case in CASES} | {"VknodeAgentDown"}
    assert tested == {rule["alert"] for rule in alerts()}
    headings = set(re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE))
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert rule["alert"] in headings
    assert headings == tested, "no runbook without an alert"


def test_the_rules_are_sound(promtool: Promtool) -> None:
    rules = promtool.folder / "all.yaml"
    rules.write_text(yaml.safe_dump(rule_file()))
    done = promtool.run("check", "rules", "--lint=all", "--lint-fatal", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr
