"""Statuses that a real kubelet 1.37.2 wrote, and ours for the same facts.

kubelet-1.37.2-pods.json holds Pods as the API server had them 20 s after their creation:
the real kubelet beside a real containerd. What a pool would know of them is taken out of
their statuses; everything else (phase, conditions with reasons and messages, resources,
defaults, order) must come out as the kubelet wrote it.
"""

from __future__ import annotations

import calendar
import json
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.translate.builders import Json
from vknode.pool.v1 import status_pb2
from vknode.translate.facts import StatusFacts
from vknode.translate.patch import status_patch
from vknode.translate.qos import compute_qos_class
from vknode.translate.status import pod_status

_PODS = json.loads((Path(__file__).parent / "kubelet-1.37.2-pods.json").read_text())
_STATES = {
    "Pending": status_pb2.SANDBOX_STATE_STARTING,
    "Running": status_pb2.SANDBOX_STATE_RUNNING,
    "Succeeded": status_pb2.SANDBOX_STATE_SUCCEEDED,
    "Failed": status_pb2.SANDBOX_STATE_FAILED,
}


def _time(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    return Timestamp(seconds=calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def _state(state: Json) -> status_pb2.ContainerState:
    if "running" in state:
        started = _time(state["running"]["startedAt"])
        return status_pb2.ContainerState(running=status_pb2.Running(started_at=started))
    if "terminated" in state:
        ended = state["terminated"]
        return status_pb2.ContainerState(
            terminated=status_pb2.Terminated(
                exit_code=ended["exitCode"],
                reason=ended.get("reason", ""),
                message=ended.get("message", ""),
                started_at=_time(ended.get("startedAt")),
                finished_at=_time(ended.get("finishedAt")),
                container_id=ended.get("containerID", ""),
            )
        )
    return status_pb2.ContainerState(waiting=status_pb2.Waiting(**state.get("waiting", {})))


def _container(status: Json) -> status_pb2.ContainerStatus:
    user = status.get("user", {}).get("linux")
    return status_pb2.ContainerStatus(
        name=status["name"],
        container_id=status.get("containerID", ""),
        image=status["image"],
        image_id=status["imageID"],
        restart_count=status["restartCount"],
        ready=status["ready"],
        started=status.get("started", False),
        state=_state(status["state"]),
        last_termination=_state(status["lastState"]) if status.get("lastState") else None,
        user=status_pb2.ContainerUser(
            uid=user["uid"], gid=user["gid"], supplemental_groups=user.get("supplementalGroups", ())
        )
        if user
        else None,
    )


def _sandbox(pod: Json) -> status_pb2.Sandbox | None:
    status = pod["status"]
    true = {one["type"] for one in status["conditions"] if one["status"] == "True"}
    if not status.get("podIPs"):
        return None  # its volumes never came: it has no sandbox yet
    return status_pb2.Sandbox(
        state=_STATES[status["phase"]],
        observed_generation=pod["metadata"]["generation"],
        pod_ips=[one["ip"] for one in status["podIPs"]],
        network_ready="PodReadyToStartContainers" in true,
        initialized="Initialized" in true,
        containers=[_container(one) for one in status["containerStatuses"]],
        init_containers=[_container(one) for one in status.get("initContainerStatuses", ())],
    )


def _normal(value: Any) -> Any:
    """Without nulls and empty objects, which mean nothing."""
    if isinstance(value, dict):
        return {name: _normal(one) for name, one in value.items() if one not in (None, {})}
    return [_normal(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("pod", _PODS, ids=[pod["metadata"]["name"] for pod in _PODS])
def test_the_status_is_the_kubelets(pod: Json) -> None:
    theirs = pod["status"]
    # Before: bound, and only the transition times known (ours would be of today).
    before = {
        "phase": "Pending",
        "startTime": theirs["startTime"],
        "conditions": [
            {name: one[name] for name in ("type", "status", "lastTransitionTime")}
            for one in theirs["conditions"]
        ],
    }
    facts = StatusFacts(now="never", host_ips=[theirs["hostIP"]])
    ours = pod_status({**pod, "status": before}, _sandbox(pod), facts)
    assert _normal(ours) == _normal(theirs)
    assert status_patch("u", theirs, ours) is None
    assert compute_qos_class(pod) == theirs["qosClass"]


def test_the_samples_cover_every_phase() -> None:
    assert {pod["status"]["phase"] for pod in _PODS} == set(_STATES)
