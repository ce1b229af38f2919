"""Scenario files are read strictly: a mistake in one names the file, the place and the fix."""

from __future__ import annotations

import pytest

from tests.scenarios.format import BadScenario, load, parse

GOOD = """
title: A Pod runs
objects:
  - {apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: main}]}}
steps:
  - expect: {phase: Running, conditions: {Ready: "True"}}
    within: 5s
    as: running
  - exec: {run: "true"}
    within: {kubelet: 1m, vknode: 500ms}
  - time: {from: running, to: running, atMost: 1s}
never:
  - containers: {main: {restartCount: at least 1}}
"""


def test_what_a_file_says_is_what_is_played() -> None:
    scenario = parse(GOOD, "status/good")
    assert scenario.title == "A Pod runs" and scenario.pods == ("web",)
    expect, exec_, time = scenario.steps
    assert expect.about["conditions"] == {"Ready": {"status": "True"}}
    assert expect.patience("kubelet") == expect.patience("vknode") == 5.0
    assert (exec_.patience("kubelet"), exec_.patience("vknode")) == (60.0, 0.5)
    assert time.about["atMost"] == 1.0
    assert scenario.runs_on("kubelet") and scenario.runs_on("vknode")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title: A Pod runs\n", "", "status/bad lacks 'title'"),
        ("title:", "titel: x\ntitle:", "status/bad has no key 'titel'; it may have title"),
        ("phase:", "fase:", "steps[1].expect has no key 'fase'"),
        ("Ready:", "Ready: {state: x}, Other:", "expect.conditions.Ready has no key 'state'"),
        ('"True"', "yes", "expect.conditions.Ready must be one of True, False, Unknown"),
        ("restartCount:", "restarts:", "never[1].containers.main has no key 'restarts'"),
        ("within: 5s", "within: 5", "steps[1].within must be a duration like 500ms, 2s or 1m"),
        ("vknode: 500ms", "other: 1s", "within has no key 'other'"),
        ("    as: running\n", "", "steps[3].time.from: no step has `as: running`"),
        ("exec:", "execute:", "steps[2] must have exactly one of expect, event"),
        ("run:", "shell:", "steps[2].exec has no key 'shell'"),
        ("phase: Running", "phase: ~(", "steps[1].expect.phase: '(' is no regular expression"),
        ("apiVersion: v1, ", "", "objects[1].apiVersion must be a text"),
        ("metadata: {name: web}", "metadata: {}", "objects[1].metadata.name must be a text"),
        ("{main: {restartCount:", "{mian: {restartCount:", "no container 'mian'"),
        ("- containers: {main: {re", "- pod: wep\n    containers: {main: {re", "no Pod 'wep'"),
        ("never:", "only: vknode\nnever:", "`only` and `why` belong together"),
        ("- exec: {", "- fault: {kill: disk, away: 1s}\n    x: {", "not 'fault', 'x'"),
        (
            'exec: {run: "true"}',
            "fault: {kill: agent, away: 1s}",
            "with a `fault` it must say `only: vknode`",
        ),
        ('exec: {run: "true"}', "fault: {kill: disk, away: 1s}", "kill must be one of agent, pool"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(BadScenario) as caught:
        parse(GOOD.replace(old, new, 1), "status/bad")
    assert str(caught.value).startswith("status/bad")
    assert told in str(caught.value)


def test_text_that_is_no_yaml_is_told() -> None:
    with pytest.raises(BadScenario, match="status/bad: no YAML"):
        parse("title: [", "status/bad")


def test_names_are_chosen_by_a_pattern() -> None:
    assert {one.name.partition("/")[0] for one in load("^(hooks|init)/")} == {"hooks", "init"}
