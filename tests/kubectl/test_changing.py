"""Changing things with kubectl: create, apply, delete, scale, rollout."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.kube import Kube, deployment, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def test_create_refuses_a_second_time_and_apply_does_not(kube: Kube) -> None:
    body = json.dumps(simple_pod("twice"))
    kube.run("create", "-f", "-", input=body)
    again = kube.run("create", "-f", "-", input=body, check=False)
    assert again.returncode == 1
    assert "AlreadyExists" in again.stderr
    kube.run("apply", "-f", "-", input=body)
    kube.wait_phase("twice", "Running")


def test_changed_labels_leave_the_containers_alone(kube: Kube) -> None:
    kube.apply(simple_pod("labelled"))
    before = kube.wait_phase("labelled", "Running")["status"]["containerStatuses"][0]
    kube.out("label", "pod", "labelled", "colour=blue")
    kube.out("annotate", "pod", "labelled", "note=hello")
    after = kube.pod("labelled")
    assert after["metadata"]["labels"]["colour"] == "blue"
    now = after["status"]["containerStatuses"][0]
    assert now["containerID"] == before["containerID"]
    assert now["restartCount"] == 0


def test_delete_waits_for_the_container_to_end(kube: Kube) -> None:
    # The shell needs about a second after the signal; the object must outlive it.
    kube.apply(
        simple_pod(
            "slow",
            ["sh", "-c", "trap 'sleep 1; exit 0' TERM; echo set; while :; do sleep 0.1; done"],
            grace=90,
        )
    )
    kube.wait_phase("slow", "Running")
    # Before, the signal would go unheard: the first process of a container has no default.
    until(lambda: kube.out("logs", "slow") == "set\n", "the trap is set")
    started = time.monotonic()
    kube.out("delete", "pod", "slow")
    took = time.monotonic() - started
    assert 1.0 <= took < 60.0, "not at the end of its grace"
    assert kube.get("pod", "slow") is None


def test_grace_ends_with_sigkill(kube: Kube) -> None:
    kube.apply(
        simple_pod("deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], grace=3)
    )
    kube.wait_phase("deaf", "Running")
    started = time.monotonic()
    kube.out("delete", "pod", "deaf")
    took = time.monotonic() - started
    assert 3.0 <= took < 25.0, "after its own grace, and not after the usual one"


def test_force_deletion_frees_the_name_at_once(kube: Kube) -> None:
    kube.apply(
        simple_pod("forced", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], grace=60)
    )
    kube.wait_phase("forced", "Running")
    kube.out("delete", "pod", "forced", "--force", "--grace-period=0")
    assert kube.get("pod", "forced") is None
    kube.apply(simple_pod("forced"))
    kube.wait_phase("forced", "Running")


def test_scale_up_and_down(kube: Kube) -> None:
    kube.apply(deployment("scaled", 2))
    kube.ready_pods("app=scaled", 2)
    kube.out("scale", "deployment/scaled", "--replicas=5")
    kube.ready_pods("app=scaled", 5)
    kube.out("scale", "deployment/scaled", "--replicas=1")
    kube.ready_pods("app=scaled", 1)


def test_rollout_status_restart_undo(kube: Kube) -> None:
    kube.apply(deployment("rolled", 3))
    kube.out("rollout", "status", "deployment/rolled", "--timeout=90s")
    first = {p["metadata"]["uid"] for p in kube.ready_pods("app=rolled", 3)}

    kube.out("rollout", "restart", "deployment/rolled")
    kube.out("rollout", "status", "deployment/rolled", "--timeout=90s")
    second = {p["metadata"]["uid"] for p in kube.ready_pods("app=rolled", 3)}
    assert not first & second

    kube.out("set", "env", "deployment/rolled", "COLOUR=green")
    kube.out("rollout", "status", "deployment/rolled", "--timeout=90s")
    pods = kube.ready_pods("app=rolled", 3)
    assert all(
        {"name": "COLOUR", "value": "green"} in p["spec"]["containers"][0]["env"] for p in pods
    )

    kube.out("rollout", "undo", "deployment/rolled")
    kube.out("rollout", "status", "deployment/rolled", "--timeout=90s")
    assert all("env" not in p["spec"]["containers"][0] for p in kube.ready_pods("app=rolled", 3))
    assert len(kube.out("rollout", "history", "deployment/rolled").splitlines()) >= 4
