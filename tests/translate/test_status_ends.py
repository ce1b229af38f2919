"""How Pods end in their status: evicted, restarted as a whole, deleted before their start."""

from __future__ import annotations

import pytest

from tests.translate.builders import FACTS, pod
from tests.translate.test_status import conditions, detail, ended, running, sandbox, waiting
from vknode.translate.status import ended_status, pod_status, waiting_status

UNKNOWN = {
    "exitCode": 137,
    "reason": "ContainerStatusUnknown",
    "message": "The container could not be located when the pod was terminated",
    "startedAt": None,
    "finishedAt": None,
}


@pytest.mark.parametrize(
    ("reason", "message", "disruption"),
    [
        ("Evicted", "The node was low on resource: memory. ", True),
        ("Evicted", 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". ', False),
        ("Evicted", 'Container web exceeded its local ephemeral storage limit "1Mi". ', False),
        ("Preempting", "Preempted in order to admit critical pod", True),
        ("Terminated", "Pod was terminated in response to imminent node shutdown.", True),
        ("DeadlineExceeded", "Pod was active on the node longer than the deadline", False),
        ("", "", False),
    ],
)
def test_what_ends_a_pod_for_its_node_is_a_disruption(
    reason: str, message: str, disruption: bool
) -> None:
    status = pod_status(
        pod(), sandbox("FAILED", ended(code=137), reason=reason, message=message), FACTS
    )
    assert status["phase"] == "Failed"
    assert status.get("reason", "") == reason
    found = conditions(status).get("DisruptionTarget")
    assert found == ("True TerminationByKubelet" if disruption else None)
    if disruption:
        assert detail(status, "DisruptionTarget")["message"] == message


def test_an_earlier_disruption_keeps_its_cause() -> None:
    one = pod()
    one["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    ]
    status = pod_status(
        one, sandbox("FAILED", ended(code=137), reason="Evicted", message="low"), FACTS
    )
    assert conditions(status)["DisruptionTarget"] == "True EvictionByEvictionAPI"


_RULE = (
    "restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [3]}}]"
)
_RESTARTS = pod(f"containers: [{{name: web, image: i, {_RULE}}}]")


def test_a_restart_of_all_containers_shows() -> None:
    assert "AllContainersRestarting" not in conditions(
        pod_status(pod(), sandbox("RUNNING", restarting_all=True), FACTS)
    )
    quiet = pod_status(_RESTARTS, sandbox("RUNNING"), FACTS)
    assert conditions(quiet)["AllContainersRestarting"] == "False"
    busy = pod_status(_RESTARTS, sandbox("RUNNING", restarting_all=True), FACTS)
    assert conditions(busy)["AllContainersRestarting"] == "True RestartAllContainersStarted"
    entry = busy["conditions"][-1]
    assert entry["type"] == "AllContainersRestarting"
    assert entry["message"] == "container exited with restart policy rule"
    assert "observedGeneration" not in entry
    over = pod_status(_RESTARTS, sandbox("FAILED", ended(code=1)), FACTS, busy)
    assert conditions(over)["AllContainersRestarting"] == "False PodFailed"
    assert conditions(waiting_status(_RESTARTS, FACTS))["AllContainersRestarting"] == "False"


_INIT = pod(
    """
    restartPolicy: Never
    initContainers:
    - {name: one, image: i}
    - {name: two, image: i}
    containers: [{name: web, image: i}]
    """
)


def test_after_a_failed_init_container_the_rest_still_waits() -> None:
    status = pod_status(
        _INIT,
        sandbox(
            "FAILED",
            waiting("web", "PodInitializing"),
            init_containers=[ended("one", 1), waiting("two", "PodInitializing")],
            initialized=False,
        ),
        FACTS,
    )
    assert status["phase"] == "Failed"
    assert "waiting" in status["containerStatuses"][0]["state"]
    first, second = status["initContainerStatuses"]
    assert first["state"]["terminated"]["exitCode"] == 1
    assert "waiting" in second["state"]


def test_what_a_terminal_pod_knows_no_end_of_counts_as_failed() -> None:
    status = pod_status(
        pod(),
        sandbox(
            "FAILED",
            waiting("web", "ImagePullBackOff", "no such image"),
            reason="DeadlineExceeded",
            message="Pod was active on the node longer than the specified deadline",
        ),
        FACTS,
    )
    (web,) = status["containerStatuses"]
    assert web["state"] == {"terminated": UNKNOWN}
    assert not web["ready"]
    half = pod_status(
        _INIT,
        sandbox(
            "FAILED",
            waiting("web"),
            init_containers=[ended("one", 0), running("two")],
            reason="Evicted",
            initialized=False,
        ),
        FACTS,
    )
    assert half["initContainerStatuses"][1]["state"] == {"terminated": UNKNOWN}
    assert "waiting" in half["containerStatuses"][0]["state"]


def test_a_pod_deleted_before_its_start_is_failed_at_its_end() -> None:
    status = ended_status(pod(), FACTS)
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"] == {"terminated": UNKNOWN}
    assert conditions(status)["Ready"] == "False PodFailed"
    early = ended_status(_INIT, FACTS)
    assert early["phase"] == "Failed"
    assert early["initContainerStatuses"][0]["state"] == {"terminated": UNKNOWN}
    assert "waiting" in early["initContainerStatuses"][1]["state"]
    assert "waiting" in early["containerStatuses"][0]["state"]


def test_who_has_ended_keeps_the_end() -> None:
    over = pod_status(pod(), sandbox("SUCCEEDED", ended()), FACTS)
    assert ended_status(pod(), FACTS, over) == over
    up = pod_status(pod(), sandbox("RUNNING", running(), pod_ips=["10.1.1.1"]), FACTS)
    gone = ended_status(pod(), FACTS, up)
    assert gone["phase"] == "Failed"
    assert gone["containerStatuses"][0]["state"] == {"terminated": UNKNOWN}
    assert gone["containerStatuses"][0]["containerID"] == "containerd://web-1"
    assert gone["podIP"] == "10.1.1.1"


def test_a_debug_container_has_its_own_list() -> None:
    one = pod("ephemeralContainers: [{name: debug, image: i, targetContainerName: web}]")
    before = pod_status(one, sandbox("RUNNING"), FACTS)
    (entry,) = before["ephemeralContainerStatuses"]
    assert entry["state"] == {"waiting": {"reason": "ContainerCreating"}}
    up = pod_status(
        one, sandbox("RUNNING", running(), ephemeral_containers=[running("debug")]), FACTS
    )
    (entry,) = up["ephemeralContainerStatuses"]
    assert "running" in entry["state"]
    assert "started" not in entry
    assert conditions(up)["Ready"] == "True"
