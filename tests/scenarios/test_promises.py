"""What may happen to no Pod is found in its history, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.facts import broken_promises
from tests.scenarios.history import Version

CONTAINER = {"name": "main", "restartCount": 0, "state": {"running": {}}, "lastState": {}}


def pod(phase: str = "Running", *, uid: str = "u1", spec: Any = None, **status: Any) -> Any:
    return {
        "metadata": {"uid": uid},
        "spec": spec or {},
        "status": {"phase": phase, "containerStatuses": [CONTAINER], **status},
    }


def ended(code: int, finished: str = "2026-01-01T00:00:05Z", started: str = "") -> Any:
    end = {
        "containerID": "containerd://1",
        "exitCode": code,
        "startedAt": started or "2026-01-01T00:00:01Z",
        "finishedAt": finished,
    }
    return [{**CONTAINER, "state": {"terminated": end}}]


def conditions(**status: str) -> Any:
    return [{"type": kind, "status": value} for kind, value in status.items()]


def found(*pods: Any) -> list[str]:
    return list(broken_promises([Version(n, float(n), one) for n, one in enumerate(pods)]))


def test_an_ordinary_life_breaks_none() -> None:
    restarted = [{**CONTAINER, "restartCount": 1}]
    assert not found(
        pod("Pending"),
        pod("Running", conditions=conditions(Ready="True", ContainersReady="True")),
        pod("Running", containerStatuses=restarted, observedGeneration=2),
        pod("Failed", containerStatuses=restarted, observedGeneration=2),
        # The next one under the same name.
        pod("Pending", uid="u2"),
    )


@pytest.mark.parametrize(
    ("pods", "told"),
    [
        ([pod("Running"), pod("Pending")], "its phase went from Running to Pending"),
        ([pod("Succeeded"), pod("Failed")], "its phase went from Succeeded to Failed"),
        ([pod("Failed"), pod("Running")], "its phase went from Failed to Running"),
        (
            [pod(containerStatuses=[{**CONTAINER, "restartCount": 2}]), pod()],
            "the restartCount of main went back",
        ),
        ([pod(observedGeneration=2), pod(observedGeneration=1)], "its observedGeneration went"),
        (
            [pod(conditions=conditions(Ready="True", ContainersReady="False"))],
            "it was Ready while its containers were not",
        ),
        (
            [pod(containerStatuses=ended(3)), pod(containerStatuses=ended(137))],
            "the end of one instance of main was told as",
        ),
        (
            [pod(containerStatuses=ended(3, started="2026-01-01T00:00:09Z"))],
            "main ended before it started",
        ),
    ],
)
def test_what_may_not_happen_is_told(pods: list[Any], told: str) -> None:
    (problem,) = found(*pods)
    assert problem.startswith(told)


def test_all_containers_restarting_begins_once_more() -> None:
    spec = {"containers": [{"restartPolicyRules": [{"action": "RestartAllContainers"}]}]}
    assert not found(pod("Running", spec=spec), pod("Pending", spec=spec))
