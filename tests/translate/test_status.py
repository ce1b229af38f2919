"""PodStatus of a sandbox: phases, conditions and container statuses as a kubelet writes them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tests.translate.builders import FACTS, UID, Json, pod
from vknode.pool.v1 import spec_pb2, status_pb2
from vknode.translate.facts import rfc3339
from vknode.translate.patch import status_patch
from vknode.translate.status import (
    lost_status,
    pod_status,
    rejected_status,
    waiting_status,
)

_LATER = replace(FACTS, now="2026-03-01T10:00:05Z")
_AT = Timestamp(seconds=1772359201, nanos=5)
_AT_TEXT = "2026-03-01T10:00:01Z"


def running(name: str = "web", **fields: Any) -> status_pb2.ContainerStatus:
    return status_pb2.ContainerStatus(
        **{
            "name": name,
            "container_id": f"containerd://{name}-1",
            "image": "docker.io/library/web:1",
            "image_id": "docker.io/library/web@sha256:abc",
            "state": status_pb2.ContainerState(running=status_pb2.Running(started_at=_AT)),
            "ready": True,
            "started": True,
            **fields,
        }
    )


def ended(name: str = "web", code: int = 0, **fields: Any) -> status_pb2.ContainerStatus:
    state = status_pb2.ContainerState(
        terminated=status_pb2.Terminated(
            exit_code=code,
            reason="Error" if code else "Completed",
            started_at=_AT,
            finished_at=_AT,
            container_id=f"containerd://{name}-1",
        )
    )
    return running(name, **{"state": state, "ready": False, "started": False, **fields})


def waiting(name: str, reason: str = "", message: str = "") -> status_pb2.ContainerStatus:
    return status_pb2.ContainerStatus(
        name=name,
        state=status_pb2.ContainerState(waiting=status_pb2.Waiting(reason=reason, message=message)),
    )


def sandbox(
    state: str, *containers: status_pb2.ContainerStatus, **fields: Any
) -> status_pb2.Sandbox:
    return status_pb2.Sandbox(
        **{
            "uid": UID,
            "state": status_pb2.SandboxState.Value(f"SANDBOX_STATE_{state}"),
            "containers": containers or (running(),),
            "pod_ips": ["10.244.1.5"],
            "observed_generation": 1,
            "network_ready": state not in ("CREATING", "SUCCEEDED", "FAILED"),
            "initialized": state not in ("CREATING", "STARTING"),
            **fields,
        }
    )


def conditions(status: Json) -> dict[str, str]:
    """By type: the status, with the reason where there is one."""
    return {
        one["type"]: one["status"] + (f" {one['reason']}" if "reason" in one else "")
        for one in status["conditions"]
    }


def test_a_pod_is_pending_until_each_container_has_been_started() -> None:
    one = pod("containers: [{name: web}, {name: other}]")
    half = sandbox("RUNNING", running(), waiting("other", "CreateContainerConfigError"))
    assert pod_status(one, half, FACTS)["phase"] == "Pending"
    both = sandbox("RUNNING", running(), running("other"))
    up = pod_status(one, both, FACTS)
    assert up["phase"] == "Running"
    # A phase never goes back, and what has run once may wait.
    assert pod_status(one, half, FACTS, old=up)["phase"] == "Running"
    crashed = waiting("other", "CrashLoopBackOff")
    crashed.last_termination.terminated.exit_code = 1
    assert pod_status(one, sandbox("RUNNING", running(), crashed), FACTS)["phase"] == "Running"


def detail(status: Json, kind: str) -> Json:
    found: Json = next(one for one in status["conditions"] if one["type"] == kind)
    return found


def test_a_running_pod_in_full() -> None:
    one = pod(
        """
        containers:
        - name: web
          image: web:1
          resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 64Mi}}
          volumeMounts:
          - {name: v, mountPath: /v}
          - {name: r, mountPath: /r, readOnly: true}
        """
    )
    one["status"] = {
        "phase": "Pending",
        "qosClass": "Burstable",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "True",
                "observedGeneration": 1,
                "lastProbeTime": None,
                "lastTransitionTime": "2026-03-01T09:59:59Z",
            }
        ],
    }
    container = running(
        user=status_pb2.ContainerUser(uid=1000, gid=1000, supplemental_groups=[1000, 2000])
    )

    def condition(kind: str, since: str = FACTS.now) -> Json:
        return {
            "type": kind,
            "status": "True",
            "observedGeneration": 1,
            "lastProbeTime": None,
            "lastTransitionTime": since,
        }

    assert pod_status(one, sandbox("RUNNING", container), FACTS) == {
        "observedGeneration": 1,
        "phase": "Running",
        "conditions": [
            condition("PodReadyToStartContainers"),
            condition("Initialized"),
            condition("Ready"),
            condition("ContainersReady"),
            condition("PodScheduled", "2026-03-01T09:59:59Z"),
        ],
        "hostIP": "192.168.1.10",
        "hostIPs": [{"ip": "192.168.1.10"}],
        "podIP": "10.244.1.5",
        "podIPs": [{"ip": "10.244.1.5"}],
        "startTime": FACTS.now,
        "containerStatuses": [
            {
                "name": "web",
                "state": {"running": {"startedAt": _AT_TEXT}},
                "lastState": {},
                "ready": True,
                "started": True,
                "restartCount": 0,
                "image": "docker.io/library/web:1",
                "imageID": "docker.io/library/web@sha256:abc",
                "containerID": "containerd://web-1",
                "allocatedResources": {"cpu": "100m", "memory": "64Mi"},
                "resources": {
                    "requests": {"cpu": "100m", "memory": "64Mi"},
                    "limits": {"memory": "64Mi"},
                },
                "volumeMounts": [
                    {"name": "v", "mountPath": "/v"},
                    {
                        "name": "r",
                        "mountPath": "/r",
                        "readOnly": True,
                        "recursiveReadOnly": "Disabled",
                    },
                ],
                "user": {"linux": {"uid": 1000, "gid": 1000, "supplementalGroups": [1000, 2000]}},
            }
        ],
        "qosClass": "Burstable",
        "allocatedResources": {"cpu": "100m", "memory": "64Mi"},
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"memory": "64Mi"},
        },
    }


def test_before_there_is_a_sandbox() -> None:
    status = pod_status(pod(), None, FACTS)
    assert status["phase"] == "Pending"
    assert conditions(status) == {
        "PodReadyToStartContainers": "False PodSandboxNotReady",
        "Initialized": "True",
        "Ready": "False ContainersNotReady",
        "ContainersReady": "False ContainersNotReady",
        "PodScheduled": "True",
    }
    assert detail(status, "PodReadyToStartContainers")["message"] == "no pod sandbox exists"
    assert detail(status, "Ready")["message"] == "containers with unready status: [web]"
    assert status["containerStatuses"] == [
        {
            "name": "web",
            "state": {"waiting": {"reason": "ContainerCreating"}},
            "lastState": {},
            "ready": False,
            "started": False,
            "restartCount": 0,
            "image": "web:1",
            "imageID": "",
        }
    ]
    assert status["startTime"] == FACTS.now
    assert "podIP" not in status


_INIT = """
initContainers:
- {name: second, image: i}
- {name: first, image: i}
- {name: proxy, image: p, restartPolicy: Always}
containers:
- {name: zeta, image: i}
- {name: alpha, image: i}
"""


def test_init_containers_and_sidecars() -> None:
    one = pod(_INIT)
    status = waiting_status(one, FACTS)
    assert [entry["name"] for entry in status["initContainerStatuses"]] == [
        "second",
        "first",
        "proxy",
    ]
    # Main containers are sorted by name, as a kubelet does.
    assert [entry["name"] for entry in status["containerStatuses"]] == ["alpha", "zeta"]
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert detail(status, "Initialized")["message"] == (
        "containers with incomplete status: [second first proxy]"
    )
    assert detail(status, "ContainersReady")["message"] == (
        "containers with unready status: [proxy zeta alpha]"
    )
    started = sandbox(
        "STARTING",
        waiting("zeta", "PodInitializing"),
        waiting("alpha"),
        init_containers=[ended("second"), running("first"), waiting("proxy", "PodInitializing")],
    )
    status = pod_status(one, started, FACTS)
    assert status["phase"] == "Pending"
    assert [(entry["ready"], entry["started"]) for entry in status["initContainerStatuses"]] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert detail(status, "Initialized")["message"] == (
        "containers with incomplete status: [first proxy]"
    )
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    # A sidecar that is not ready keeps the Pod from being ready.
    up = sandbox(
        "RUNNING",
        running("zeta"),
        running("alpha"),
        init_containers=[ended("second"), ended("first"), running("proxy", ready=False)],
    )
    status = pod_status(one, up, FACTS)
    assert conditions(status)["Initialized"] == "True"
    assert detail(status, "Ready")["message"] == "containers with unready status: [proxy]"


def test_initialized_stays_true_when_a_sidecar_restarts() -> None:
    one = pod(_INIT)
    init = [ended("second"), ended("first"), running("proxy")]
    up = sandbox("RUNNING", running("zeta"), running("alpha"), init_containers=init)
    first = pod_status(one, up, FACTS)
    init[2] = waiting("proxy", "CrashLoopBackOff")
    again = sandbox(
        "RUNNING", running("zeta"), running("alpha"), init_containers=init, initialized=False
    )
    assert conditions(pod_status(one, again, FACTS, old=first))["Initialized"] == "True"


@pytest.mark.parametrize(
    ("state", "codes", "phase", "reason"),
    [("SUCCEEDED", (0, 0), "Succeeded", "PodCompleted"), ("FAILED", (0, 3), "Failed", "PodFailed")],
)
def test_terminal_pods(state: str, codes: tuple[int, int], phase: str, reason: str) -> None:
    one = pod("restartPolicy: Never\ncontainers: [{name: a, image: i}, {name: b, image: i}]")
    done = sandbox(state, ended("a", codes[0]), ended("b", codes[1]), pod_ips=[])
    status = pod_status(one, done, FACTS, old={"podIPs": [{"ip": "10.0.0.9"}], "podIP": "10.0.0.9"})
    assert status["phase"] == phase
    assert conditions(status) == {
        "PodReadyToStartContainers": "False PodSandboxNotReady",
        "Initialized": "True PodCompleted" if phase == "Succeeded" else "True",
        "Ready": f"False {reason}",
        "ContainersReady": f"False {reason}",
        "PodScheduled": "True",
    }
    last = status["containerStatuses"][1]
    assert last["state"]["terminated"]["exitCode"] == codes[1]
    assert last["state"]["terminated"]["containerID"] == "containerd://b-1"
    # The address it had stays visible.
    assert status["podIP"] == "10.0.0.9"


def test_a_crash_loop_is_running_and_shows_the_last_end() -> None:
    looping = status_pb2.ContainerStatus(
        name="web",
        container_id="containerd://web-4",
        image="web:1",
        restart_count=4,
        state=status_pb2.ContainerState(
            waiting=status_pb2.Waiting(
                reason="CrashLoopBackOff", message="back-off 40s restarting failed container"
            )
        ),
        last_termination=ended("web", 1).state,
    )
    status = pod_status(pod(), sandbox("RUNNING", looping), FACTS)
    assert status["phase"] == "Running"
    entry = status["containerStatuses"][0]
    assert entry["restartCount"] == 4
    assert entry["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert entry["lastState"]["terminated"]["exitCode"] == 1
    assert (entry["ready"], entry["started"]) == (False, False)
    assert conditions(status)["Ready"] == "False ContainersNotReady"


def test_the_reason_of_a_failed_sandbox_is_the_pods() -> None:
    failed = sandbox(
        "FAILED", ended("web", 137), reason="DeadlineExceeded", message="Pod was active too long"
    )
    status = pod_status(pod(), failed, FACTS)
    assert (status["reason"], status["message"]) == ("DeadlineExceeded", "Pod was active too long")
    # And a later, poorer report does not take it away.
    again = pod_status(pod(), sandbox("FAILED", ended("web", 137)), FACTS, old=status)
    assert again["reason"] == "DeadlineExceeded"


def test_nothing_leads_back_from_a_terminal_phase() -> None:
    done = pod_status(pod(), sandbox("SUCCEEDED", ended()), FACTS)
    for state in ("CREATING", "RUNNING", "FAILED"):
        assert pod_status(pod(), sandbox(state), _LATER, old=done)["phase"] == "Succeeded"
    assert pod_status(pod(), None, _LATER, old=done) == done
    assert lost_status(pod(), _LATER, old=done) == done


def test_a_pod_that_ran_is_not_pending_because_its_sandbox_is_out_of_sight() -> None:
    up = pod_status(pod(), sandbox("RUNNING"), FACTS)
    assert pod_status(pod(), None, _LATER, old=up) == up
    assert pod_status(pod(), sandbox("STARTING"), _LATER, old=up)["phase"] == "Running"


def test_transition_times_move_only_with_the_status() -> None:
    unready = pod_status(pod(), sandbox("RUNNING", running(ready=False)), FACTS)
    ready = pod_status(pod(), sandbox("RUNNING"), _LATER, old=unready)
    assert detail(ready, "Ready")["lastTransitionTime"] == _LATER.now
    assert detail(ready, "Initialized")["lastTransitionTime"] == FACTS.now
    assert ready["startTime"] == FACTS.now


def test_readiness_gates() -> None:
    one = pod("readinessGates: [{conditionType: example.com/lb}, {conditionType: example.com/x}]")
    status = pod_status(one, sandbox("RUNNING"), FACTS)
    assert conditions(status)["ContainersReady"] == "True"
    assert conditions(status)["Ready"] == "False ReadinessGatesNotReady"
    one["status"]["conditions"] = [
        {"type": "example.com/lb", "status": "False"},
        {"type": "example.com/x", "status": "True"},
    ]
    status = pod_status(one, sandbox("RUNNING"), FACTS)
    assert detail(status, "Ready")["message"] == (
        'the status of pod readiness gate "example.com/lb" is not "True", but False'
    )
    one["status"]["conditions"][0]["status"] = "True"
    assert conditions(pod_status(one, sandbox("RUNNING"), FACTS))["Ready"] == "True"


def test_what_others_wrote_is_passed_through() -> None:
    one = pod()
    foreign = [
        {"type": "example.com/lb", "status": "True", "lastTransitionTime": "x", "extra": 1},
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},
    ]
    one["status"] = {
        "phase": "Pending",
        "conditions": copy.deepcopy(foreign),
        "nominatedNodeName": "n",
        "resourceClaimStatuses": [{"name": "c"}],
    }
    for status in (
        pod_status(one, sandbox("RUNNING"), FACTS),
        waiting_status(one, FACTS),
        rejected_status(one, "R", "m", FACTS),
        lost_status(one, FACTS),
    ):
        kept = {entry["type"]: entry for entry in status["conditions"]}
        assert [kept["example.com/lb"], kept["DisruptionTarget"]] == foreign
        assert status["nominatedNodeName"] == "n"
        assert status["resourceClaimStatuses"] == [{"name": "c"}]


def test_observed_generation() -> None:
    changed = pod(generation=5)
    up = sandbox("RUNNING", observed_generation=4)
    status = pod_status(changed, up, FACTS)
    assert status["observedGeneration"] == 4
    assert {one["observedGeneration"] for one in status["conditions"]} == {4}
    # It never falls, and a deletion is acted on without a new spec.
    assert pod_status(changed, up, FACTS, old={"observedGeneration": 5})["observedGeneration"] == 5
    dying = pod(generation=5, deletionTimestamp="2026-03-01T10:00:00Z")
    assert pod_status(dying, up, FACTS)["observedGeneration"] == 5
    assert pod_status(changed, None, FACTS)["observedGeneration"] == 5


def test_host_network_pods_have_the_hosts_address() -> None:
    status = pod_status(pod("hostNetwork: true"), sandbox("RUNNING", pod_ips=[]), FACTS)
    assert (status["podIP"], status["podIPs"]) == ("192.168.1.10", [{"ip": "192.168.1.10"}])


def test_ephemeral_containers_have_neither_ready_nor_started() -> None:
    one = pod("ephemeralContainers: [{name: debug, image: d}]")
    up = sandbox("RUNNING", running(), ephemeral_containers=[running("debug")])
    entry = pod_status(one, up, FACTS)["ephemeralContainerStatuses"][0]
    assert entry["ready"] is False
    assert "started" not in entry
    # A container that was just added and that the pool does not know yet.
    entry = pod_status(one, sandbox("RUNNING"), FACTS)["ephemeralContainerStatuses"][0]
    assert entry["state"] == {"waiting": {"reason": "ContainerCreating"}}


def test_resources_in_force_are_the_pools() -> None:
    one = pod(
        "containers: [{name: web, image: i, resources: "
        "{requests: {cpu: 1, example.com/x: '2'}, limits: {cpu: 1}}}]"
    )
    actual = spec_pb2.Resources(requests={"cpu": "500m"}, limits={"cpu": "2"})
    entry = pod_status(one, sandbox("RUNNING", running(resources=actual)), FACTS)[
        "containerStatuses"
    ][0]
    assert entry["resources"] == {
        "requests": {"cpu": "500m", "example.com/x": "2"},
        "limits": {"cpu": "2"},
    }
    assert entry["allocatedResources"] == {"cpu": 1, "example.com/x": "2"}
    stopped = pod_status(one, sandbox("RUNNING", ended(resources=actual)), FACTS)
    assert stopped["containerStatuses"][0]["resources"]["limits"] == {"cpu": 1}


def test_termination_messages_share_12_kib() -> None:
    one = pod("containers: [{name: a, image: i}, {name: b, image: i}, {name: c, image: i}]")
    noisy = ended("a", 1)
    noisy.state.terminated.message = "ä" * 4096
    status = pod_status(one, sandbox("RUNNING", noisy, running("b"), running("c")), FACTS)
    message = status["containerStatuses"][0]["state"]["terminated"]["message"]
    assert len(message.encode()) == 4096
    assert message == "ä" * 2048


def test_unknown_times_are_null() -> None:
    bare = status_pb2.ContainerStatus(
        name="web", state=status_pb2.ContainerState(terminated=status_pb2.Terminated(exit_code=1))
    )
    entry = pod_status(pod(), sandbox("RUNNING", bare), FACTS)["containerStatuses"][0]
    assert entry["state"] == {"terminated": {"exitCode": 1, "startedAt": None, "finishedAt": None}}
    assert entry["image"] == "web:1"
    assert "containerID" not in entry


def test_a_container_that_waits_for_its_configuration() -> None:
    problem = 'configmap "x" not found'
    stuck = sandbox("STARTING", waiting("web", "CreateContainerConfigError", problem))
    entry = pod_status(pod(), stuck, FACTS)["containerStatuses"][0]
    assert entry["state"] == {
        "waiting": {"reason": "CreateContainerConfigError", "message": problem}
    }
    status = waiting_status(pod(), FACTS, "CreateContainerConfigError", problem)
    assert status["containerStatuses"][0]["state"] == entry["state"]
    assert status["phase"] == "Pending"


def test_a_rejected_pod() -> None:
    one = pod()
    one["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    status = rejected_status(one, "UnsupportedField", "spec.volumes[0].nfs: no storage", FACTS)
    assert status == {
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "message": "Pod was rejected: spec.volumes[0].nfs: no storage",
        "observedGeneration": 1,
        "phase": "Failed",
        "qosClass": "BestEffort",
        "reason": "UnsupportedField",
        "startTime": FACTS.now,
    }


def test_a_lost_sandbox_fails_the_pod_as_a_disruption() -> None:
    one = pod(_INIT)
    init = [ended("second"), ended("first"), running("proxy")]
    up = sandbox("RUNNING", running("zeta"), ended("alpha", 2), init_containers=init)
    before = pod_status(one, up, FACTS)
    status = lost_status(one, _LATER, old=before)
    assert (status["phase"], status["reason"]) == ("Failed", "SandboxLost")
    assert conditions(status) == {
        "DisruptionTarget": "True TerminationByKubelet",
        "PodReadyToStartContainers": "False PodSandboxNotReady",
        "Initialized": "True",
        "Ready": "False PodFailed",
        "ContainersReady": "False PodFailed",
        "PodScheduled": "True",
    }
    ends = {
        entry["name"]: entry["state"]["terminated"]["exitCode"]
        for entry in (*status["initContainerStatuses"], *status["containerStatuses"])
    }
    # Ends that were seen stay as they were.
    assert ends == {"second": 0, "first": 0, "proxy": 137, "alpha": 2, "zeta": 137}
    assert status["containerStatuses"][1]["state"]["terminated"]["reason"] == (
        "ContainerStatusUnknown"
    )
    assert status["podIP"] == "10.244.1.5"
    assert lost_status(one, _LATER, old=status) == status


def test_a_pod_lost_before_its_start_has_no_ended_containers() -> None:
    status = lost_status(pod(), FACTS, old=waiting_status(pod(), FACTS))
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}


def test_times() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(_AT.seconds) == _AT_TEXT


# Property tests: any sandbox of the Pod below, in any order.

_POD = pod(_INIT)


def _container(name: str) -> st.SearchStrategy[status_pb2.ContainerStatus]:
    return st.builds(
        lambda kind, code, ready, count: {
            "running": running(name, ready=ready, restart_count=count),
            "ended": ended(name, code, restart_count=count),
            "waiting": waiting(name, "CrashLoopBackOff"),
            "empty": status_pb2.ContainerStatus(name=name),
        }[kind],
        st.sampled_from(["running", "ended", "waiting", "empty"]),
        st.integers(0, 255),
        st.booleans(),
        st.integers(0, 5),
    )


_SANDBOXES = st.builds(
    lambda state, zeta, alpha, proxy, ips, ready, initialized, generation: sandbox(
        state,
        zeta,
        alpha,
        init_containers=[ended("second"), ended("first"), proxy],
        pod_ips=ips,
        network_ready=ready,
        initialized=initialized,
        observed_generation=generation,
    ),
    st.sampled_from(["UNSPECIFIED", "CREATING", "STARTING", "RUNNING", "SUCCEEDED", "FAILED"]),
    _container("zeta"),
    _container("alpha"),
    _container("proxy"),
    st.lists(st.sampled_from(["10.0.0.1", "fd00::1"]), max_size=2, unique=True),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)


@given(_SANDBOXES)
def test_a_status_applied_to_itself_changes_nothing(one: status_pb2.Sandbox) -> None:
    first = pod_status(_POD, one, FACTS)
    again = pod_status(_POD, one, _LATER, old=first)
    assert json.dumps(again) == json.dumps(first)
    assert status_patch(UID, first, again) is None


@given(st.lists(_SANDBOXES, min_size=1, max_size=6))
def test_phases_only_move_forward(history: list[status_pb2.Sandbox]) -> None:
    ranks = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
    status: Json = {}
    for one in history:
        new = pod_status(_POD, one, FACTS, old=status)
        if status:
            assert ranks[new["phase"]] >= ranks[status["phase"]]
            if ranks[status["phase"]] == 2:
                assert new["phase"] == status["phase"]
            assert new["startTime"] == status["startTime"]
            assert new["observedGeneration"] >= status.get("observedGeneration", 0)
        ready = conditions(new)["Ready"]
        if ready == "True":
            assert new["phase"] not in ("Succeeded", "Failed")
        status = new
