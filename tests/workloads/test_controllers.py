"""Every built-in workload controller works with virtual nodes as with real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.kube import Kube, Object, deployment, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "examples"


def zone_of(pod: Object) -> str:
    return str(pod["spec"]["nodeName"]).rsplit("-", 1)[0]


def test_web_example_spreads_and_answers_across_zones(kube: Kube) -> None:
    kube.run("apply", "-f", str(EXAMPLES / "web.yaml"))
    kube.out("rollout", "status", "deployment/web", "--timeout=110s")
    pods = kube.ready_pods("app=web", 6)
    zones = sorted(map(zone_of, pods))
    assert zones == ["az1", "az1", "az2", "az2", "az3", "az3"]
    assert len({p["spec"]["nodeName"] for p in pods}) == 6
    here, there = (next(p for p in pods if zone_of(p) == z) for z in ("az1", "az2"))
    ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {there['status']['podIP']} 8080"
    hello = f"hello from {there['metadata']['name']} on {there['spec']['nodeName']}"

    def answer() -> str:  # no probe tells whether it listens yet
        return kube.run("exec", here["metadata"]["name"], "--", "sh", "-c", ask, check=False).stdout

    until(lambda: hello in answer(), hello, show=answer)


def test_stateful_set_keeps_names_and_order(kube: Kube) -> None:
    body = deployment("db", 3)
    body["kind"] = "StatefulSet"
    body["spec"]["serviceName"] = "db"
    kube.apply(body)
    pods = kube.ready_pods("app=db", 3)
    by_name = {p["metadata"]["name"]: p for p in pods}
    assert sorted(by_name) == ["db-0", "db-1", "db-2"]
    started = [by_name[f"db-{i}"]["status"]["startTime"] for i in range(3)]
    assert started == sorted(started)
    assert kube.out("exec", "db-1", "--", "hostname").strip() == "db-1"
    kube.out("delete", "pod", "db-1")
    again = kube.ready_pods("app=db", 3)
    reborn = next(p for p in again if p["metadata"]["name"] == "db-1")
    assert reborn["metadata"]["uid"] != by_name["db-1"]["metadata"]["uid"]


def test_daemon_set_puts_one_on_every_node(kube: Kube) -> None:
    body = deployment("probe", 1)
    body["kind"] = "DaemonSet"
    del body["spec"]["replicas"]
    kube.apply(body)
    pods = kube.ready_pods("app=probe", 6)
    assert len({p["spec"]["nodeName"] for p in pods}) == 6


def test_job_completes_with_the_logs_of_each_index(kube: Kube) -> None:
    kube.run("apply", "-f", str(EXAMPLES / "job.yaml"))
    kube.out("wait", "--for=condition=complete", "job/squares", "--timeout=110s")
    lines = sorted(kube.out("logs", "-l", "job-name=squares", "--tail=-1").splitlines())
    assert lines == [f"{i} squared is {i * i}" for i in range(6)]
    assert {p["status"]["phase"] for p in kube.items("pods", "job-name=squares")} == {"Succeeded"}


def test_job_counts_failures_by_real_exit_codes(kube: Kube) -> None:
    kube.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "failing"},
            "spec": {
                "backoffLimit": 6,
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {"operator": "In", "values": [42]},
                        }
                    ]
                },
                "template": {
                    "spec": simple_pod("x", ["sh", "-c", "exit 42"], restart="Never")["spec"]
                },
            },
        }
    )
    kube.out("wait", "--for=condition=failed", "job/failing", "--timeout=110s")
    conditions = kube.json("get", "job", "failing")["status"]["conditions"]
    assert "PodFailurePolicy" in {c.get("reason") for c in conditions}


def test_cron_job_runs_within_its_minute(kube: Kube) -> None:
    example = yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())
    kube.apply(example)

    def finished() -> list[Object]:
        return [p for p in kube.items("pods") if p["status"].get("phase") == "Succeeded"]

    (pod, *_) = until(finished, "a finished run of the CronJob", timeout=180, every=1)
    assert kube.out("logs", pod["metadata"]["name"]).strip()


def test_same_name_recreated_quickly_is_another_pod(kube: Kube) -> None:
    uids = set()
    for turn in range(5):
        kube.apply(simple_pod("phoenix", ["sh", "-c", f"echo life {turn}; sleep 3600"], grace=0))
        pod = kube.wait_phase("phoenix", "Running")
        uids.add(pod["metadata"]["uid"])
        until(
            lambda turn=turn: kube.run("logs", "phoenix", check=False).stdout == f"life {turn}\n",  # type: ignore[misc]  # mypy cannot infer lambda defaults
            f"the log of life {turn}",
            show=lambda: kube.run("logs", "phoenix", check=False),
        )
        kube.out("delete", "pod", "phoenix", "--grace-period=1")
    assert len(uids) == 5


def test_a_service_refuses_at_once_instead_of_leaving_the_machine(kube: Kube) -> None:
    """Nothing serves Services in a development cluster, and the machine's router may take 10.96
    for somebody else's."""
    address = kube.json("get", "service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    kube.apply(simple_pod("caller", ["sleep", "3600"]))
    kube.wait_phase("caller", "Running")
    done = kube.run("exec", "caller", "--", "nc", "-w", "20", address, "443", check=False)
    assert "Connection refused" in done.stderr
