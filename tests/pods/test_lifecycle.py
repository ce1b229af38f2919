"""Start, restart and end of containers as the API shows them."""

from __future__ import annotations

import pytest

from tests.support.kube import Kube, Object, condition, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def main_status(pod: Object) -> Object:
    status: Object = pod["status"]["containerStatuses"][0]
    return status


def test_success_and_failure_carry_the_real_exit_code(kube: Kube) -> None:
    kube.apply(simple_pod("good", ["true"], restart="Never"))
    kube.apply(simple_pod("bad", ["sh", "-c", "exit 23"], restart="Never"))
    good = main_status(kube.wait_phase("good", "Succeeded"))["state"]["terminated"]
    bad = main_status(kube.wait_phase("bad", "Failed"))["state"]["terminated"]
    assert (good["exitCode"], good["reason"]) == (0, "Completed")
    assert (bad["exitCode"], bad["reason"]) == (23, "Error")
    assert bad["startedAt"] <= bad["finishedAt"]
    assert bad["containerID"].startswith("containerd://")


def test_restart_with_back_off(kube: Kube) -> None:
    kube.apply(simple_pod("crashing", ["sh", "-c", "exit 1"]))

    def looping() -> Object | None:
        pod = kube.pod("crashing")
        if "containerStatuses" not in pod["status"]:
            return None
        waiting = main_status(pod)["state"].get("waiting", {})
        return pod if waiting.get("reason") == "CrashLoopBackOff" else None

    kube.wait_phase("crashing", "Running", "Pending")
    pod = until(looping, "CrashLoopBackOff", timeout=60, show=lambda: kube.describe("crashing"))
    status = main_status(pod)
    assert status["restartCount"] >= 1
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert "restarting failed container=main" in status["state"]["waiting"]["message"]
    assert condition(pod, "Ready") == "False"


def test_on_failure_restarts_only_failures(kube: Kube) -> None:
    script = "test -e /seen/x && exit 0; touch /seen/x; exit 4"
    kube.apply(
        simple_pod(
            "second",
            ["sh", "-c", script],
            restart="OnFailure",
            volumes=[{"name": "seen", "emptyDir": {}}],
            container={"volumeMounts": [{"name": "seen", "mountPath": "/seen"}]},
        )
    )
    status = main_status(kube.wait_phase("second", "Succeeded"))
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 4


def test_init_containers_run_in_order_before_the_main_one(kube: Kube) -> None:
    mount = {"volumeMounts": [{"name": "w", "mountPath": "/w"}]}
    inits = [
        {
            "name": f"step{i}",
            "image": "busybox:1.36",
            "command": ["sh", "-c", f"sleep 0.3; echo {i} >> /w/order"],
            **mount,
        }
        for i in (1, 2)
    ]
    kube.apply(
        simple_pod(
            "ordered",
            ["sh", "-c", "cat /w/order; sleep 3600"],
            initContainers=inits,
            volumes=[{"name": "w", "emptyDir": {}}],
            container=mount,
        )
    )
    pod = kube.wait_phase("ordered", "Running")
    until(lambda: kube.out("logs", "ordered") == "1\n2\n", "both steps in order")
    assert [s["state"]["terminated"]["reason"] for s in pod["status"]["initContainerStatuses"]] == [
        "Completed",
        "Completed",
    ]


def test_failing_init_container_fails_the_pod(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "halted",
            restart="Never",
            initContainers=[{"name": "no", "image": "busybox:1.36", "command": ["false"]}],
        )
    )
    pod = kube.wait_phase("halted", "Failed")
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert "waiting" in main_status(pod)["state"]


def test_image_that_cannot_be_pulled(kube: Kube) -> None:
    kube.apply(simple_pod("unpulled", image="127.0.0.1:1/none:1"))
    until(
        lambda: any(
            word in kube.out("get", "pod", "unpulled")
            for word in ("ErrImagePull", "ImagePullBackOff")
        ),
        "an image error",
        timeout=60,
        show=lambda: kube.describe("unpulled"),
    )
    assert kube.pod("unpulled")["status"]["phase"] == "Pending"


def test_out_of_memory_is_said(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "hungry",
            ["sh", "-c", "x=$(yes | head -c 200000000); echo $x | wc -c"],
            restart="Never",
            container={"resources": {"limits": {"memory": "24Mi"}}},
        )
    )
    state = main_status(kube.wait_phase("hungry", "Failed"))["state"]["terminated"]
    assert state["exitCode"] == 137 or state["reason"] == "OOMKilled"
    assert state["reason"] == "OOMKilled"


def test_user_groups_and_read_only_root(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "restricted",
            securityContext={"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456},
            volumes=[{"name": "d", "emptyDir": {}}],
            container={
                "volumeMounts": [{"name": "d", "mountPath": "/d"}],
                "securityContext": {
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            },
        )
    )
    kube.wait_phase("restricted", "Running")
    script = (
        "id; touch /x 2>&1; touch /d/y && stat -c %g /d/y;"
        " grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    )
    text = kube.out("exec", "restricted", "--", "sh", "-c", script)
    assert "uid=1234 gid=2345" in text
    assert "3456" in text
    assert "Read-only file system" in text
    assert "CapEff:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text


def test_refused_fields_fail_at_once_and_name_the_path(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "refused",
            hostUsers=False,
        )
    )
    pod = kube.wait_phase("refused", "Failed")
    assert "spec.hostUsers" in pod["status"]["message"]
    until(
        lambda: any("spec.hostUsers" in e["message"] for e in kube.events("refused")),
        "an event with the path",
        show=lambda: kube.describe("refused"),
    )


def test_host_network_is_refused(kube: Kube) -> None:
    kube.apply(simple_pod("hostly", hostNetwork=True))
    pod = kube.wait_phase("hostly", "Failed")
    assert "spec.hostNetwork" in pod["status"]["message"]
