"""A scenario that fails tells all that one needs to know of it, and disturbs no other."""

from __future__ import annotations

import pytest

from tests.scenarios.batch import Outcome, play_all
from tests.scenarios.format import parse
from tests.scenarios.targets import vknode
from tests.support.fixtures import Running

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

POD = """
objects:
  - apiVersion: v1
    kind: Pod
    metadata: {name: web}
    spec:
      restartPolicy: Never
      containers:
        - {name: main, image: "busybox:1.36", command: [sh, -c, "echo my last words; exit 3"]}
"""


def test_a_failure_shows_history_events_description_and_logs(cri: Running) -> None:
    outcomes: dict[str, Outcome] = {}
    right = "steps: [{expect: {phase: Failed, containers: {main: {exitCode: 3}}}}]"
    told = "{expect: {phase: Failed}}, {event: {reason: Started}}"
    wrong = f"steps: [{told}, {{expect: {{containers: {{main: {{exitCode: 4}}}}}}, within: 2s}}]"
    never = f"{right}\nnever: [{{containers: {{main: {{state: terminated}}}}}}]"
    scenarios = [
        parse(f"title: {name}{POD}{steps}", f"test/{name}")
        for name, steps in (("wrong", wrong), ("right", right), ("never", never))
    ]
    cri.thread.run(
        play_all(vknode(cri), scenarios, lambda one: outcomes.update({one.scenario.name: one})),
        timeout=280,
    )
    assert not outcomes["test/right"].problem
    assert "never[1] was seen" in outcomes["test/never"].problem
    told = outcomes["test/wrong"].problem
    assert "wrong\n(tests/scenarios/test/wrong.yaml, step 3, expect)" in told
    assert "containers.main.exitCode: wanted 4, is 3" in told
    assert "Failed" in told and "main=terminated/Error/3/r0" in told  # the history
    assert "Started: Container started" in told  # the events
    assert "Exit Code:    3" in told  # the description
    assert "my last words" in told  # the logs
