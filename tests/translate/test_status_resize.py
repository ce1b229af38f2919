"""What a status says while resources are changed: three amounts and two conditions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.builders import FACTS, Json, pod
from tests.translate.test_status import conditions, detail, ended, running, sandbox
from vknode.pool.v1 import spec_pb2, status_pb2
from vknode.translate.patch import status_patch
from vknode.translate.status import pod_status

LATER = "2026-03-01T10:00:09Z"


def resources(requests: Json | None = None, limits: Json | None = None) -> spec_pb2.Resources:
    return spec_pb2.Resources(requests=requests or {}, limits=limits or {})


ASKED = pod(
    """
    containers:
    - name: web
      image: web:1
      resources:
        requests: {cpu: 200m, memory: 64Mi, ephemeral-storage: 1Gi}
        limits: {cpu: 400m, memory: 64Mi}
    """,
    generation=3,
)


def resizing(**resize: Any) -> status_pb2.Sandbox:
    return sandbox(
        "RUNNING",
        running(
            allocated=resources(
                {"cpu": "100m", "memory": "65536Ki"}, {"cpu": "0.4", "memory": "64Mi"}
            ),
            resources=resources(
                {"cpu": "50m", "memory": "64Mi"}, {"cpu": "400m", "memory": "32Mi"}
            ),
        ),
        observed_generation=3,
        resize=status_pb2.Resize(**resize),
    )


def test_set_aside_and_in_force_are_told_apart_from_the_wish() -> None:
    status = pod_status(ASKED, resizing(in_progress=True, in_progress_generation=2), FACTS)
    (web,) = status["containerStatuses"]
    assert web["allocatedResources"] == {
        "cpu": "100m",
        "memory": "64Mi",  # the same amount in the user's own words
        "ephemeral-storage": "1Gi",  # cannot be resized: as the spec says
    }
    assert web["resources"] == {
        "requests": {"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
        "limits": {"cpu": "400m", "memory": "32Mi"},
    }
    # The whole Pod, as it is set aside.
    assert status["allocatedResources"]["cpu"] == "100m"
    assert status["resources"]["requests"]["cpu"] == "100m"


def test_of_a_container_that_does_not_run_the_allocation_is_shown() -> None:
    over = ended(
        code=1,
        allocated=resources({"cpu": "100m", "memory": "64Mi"}),
        resources=resources({"cpu": "7m", "memory": "7Mi"}),
    )
    (web,) = pod_status(ASKED, sandbox("RUNNING", over), FACTS)["containerStatuses"]
    assert web["resources"]["requests"]["cpu"] == "100m"


def test_amounts_that_the_kernel_cannot_tell_apart_are_shown_as_asked() -> None:
    small = pod(
        "containers: [{name: web, image: i, resources: {requests: {cpu: 1m}, limits: {cpu: 5m}}}]"
    )
    actual = running(resources=resources({"cpu": "2m"}, {"cpu": "10m"}))
    (web,) = pod_status(small, sandbox("RUNNING", actual), FACTS)["containerStatuses"]
    assert web["resources"] == {"requests": {"cpu": "1m"}, "limits": {"cpu": "5m"}}


@pytest.mark.parametrize(
    ("told", "reason"), [("Deferred", "Deferred"), ("Infeasible", "Infeasible"), ("x", "Deferred")]
)
def test_a_change_that_is_not_begun(told: str, reason: str) -> None:
    status = pod_status(
        ASKED,
        resizing(pending_reason=told, pending_message="Node had no room", pending_generation=3),
        FACTS,
    )
    assert conditions(status)["PodResizePending"] == f"True {reason}"
    entry = detail(status, "PodResizePending")
    assert entry["message"] == "Node had no room"
    assert entry["observedGeneration"] == 3
    assert "PodResizeInProgress" not in conditions(status)


def test_a_change_that_is_carried_out_and_one_that_waits_behind_it() -> None:
    status = pod_status(
        ASKED,
        resizing(
            in_progress=True,
            in_progress_generation=2,
            error="cannot shrink",
            pending_reason="Deferred",
            pending_generation=3,
        ),
        FACTS,
    )
    kinds = [entry["type"] for entry in status["conditions"]]
    assert kinds[:2] == ["PodResizePending", "PodResizeInProgress"]
    entry = detail(status, "PodResizeInProgress")
    assert (entry["reason"], entry["message"]) == ("Error", "cannot shrink")
    assert entry["observedGeneration"] == 2


def test_the_times_of_a_resize() -> None:
    first = pod_status(ASKED, resizing(in_progress=True, in_progress_generation=3), FACTS)
    later = FACTS.__class__(LATER, FACTS.host_ips)
    again = pod_status(ASKED, resizing(in_progress=True, in_progress_generation=3), later, first)
    assert status_patch("u", first, again) is None
    failed = pod_status(
        ASKED, resizing(in_progress=True, in_progress_generation=3, error="no"), later, first
    )
    entry = detail(failed, "PodResizeInProgress")
    assert entry["lastTransitionTime"] == entry["lastProbeTime"] == LATER


def test_when_it_is_done_the_conditions_go() -> None:
    before = pod_status(ASKED, resizing(in_progress=True, in_progress_generation=3), FACTS)
    after = pod_status(ASKED, sandbox("RUNNING", observed_generation=3), FACTS, before)
    assert "PodResizeInProgress" not in conditions(after)
    patch = status_patch("u", before, after)
    assert patch is not None
    assert b'{"$patch":"delete","type":"PodResizeInProgress"}' in patch
    over = pod_status(
        ASKED,
        sandbox("FAILED", ended(code=1), resize=status_pb2.Resize(in_progress=True)),
        FACTS,
        before,
    )
    assert "PodResizeInProgress" not in conditions(over)


def test_pod_level_resources_are_those_set_aside_and_in_force() -> None:
    whole = pod(
        """
        resources: {requests: {cpu: 300m, memory: 1Gi}, limits: {cpu: '1', memory: 2Gi}}
        containers: [{name: web, image: web:1, resources: {requests: {cpu: 100m}}}]
        """
    )
    status = pod_status(
        whole,
        sandbox(
            "RUNNING",
            allocated=resources({"cpu": "200m", "memory": "1Gi"}, {"cpu": "1", "memory": "2Gi"}),
            resources=resources({"cpu": "150m"}, {"cpu": "500m", "memory": "2Gi"}),
        ),
        FACTS,
    )
    assert status["allocatedResources"] == {"cpu": "200m", "memory": "1Gi"}
    assert status["resources"] == {
        "requests": {"cpu": "150m", "memory": "1Gi"},
        "limits": {"cpu": "500m", "memory": "2Gi"},
    }
