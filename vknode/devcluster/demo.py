"""The main job, shown on real parts with the kubectl commands that do it.

Everything in the closing JSON line was observed, nothing assumed; `Story.problems`
lists what was not as it should be.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vknode.devcluster.kubectl import Kubectl

ZONES = ("az1", "az2", "az3")
CELLS = tuple(f"{zone}-{cell}" for zone in ZONES for cell in "ab")
LOST = "az2"
COLD_STARTS = 5

Object = dict[str, Any]


class Story:
    """One walk through. `break_zone` and `restore_zone` kill and start a zone's
    containerd and pool; both block."""

    def __init__(
        self,
        kubectl: Kubectl,
        example: Path,
        break_zone: Callable[[str], None],
        restore_zone: Callable[[str], None],
    ) -> None:
        self.kubectl = kubectl
        self.example = example
        self.break_zone = break_zone
        self.restore_zone = restore_zone
        self.problems: list[str] = []
        self.result: Object = {}

    # -- talking -----------------------------------------------------------------

    def say(self, text: str) -> None:
        print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)

    def show(self, *arguments: str, check: bool = True, timeout: float = 100.0) -> str:
        """Run kubectl before everybody's eyes; returns what it printed."""
        print(f"$ kubectl {shlex.join(arguments)}", flush=True)
        done = self.kubectl.run(*arguments, check=check, timeout=timeout)
        text = done.stdout.decode() + done.stderr.decode()
        print("  " + text.rstrip().replace("\n", "\n  "), flush=True)
        return text

    def items(self, *arguments: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return found

    def expect(self, truth: bool, problem: str) -> bool:
        if not truth:
            self.problems.append(problem)
            print(f"  PROBLEM: {problem}", flush=True)
        return truth

    def until(self, look: Callable[[], bool], what: str, timeout: float) -> float:
        """Seconds until `look` was true; a problem after `timeout`."""
        started = time.monotonic()
        while time.monotonic() - started < timeout:
            if look():
                return time.monotonic() - started
            time.sleep(0.2)
        self.expect(False, f"after {timeout:g} s still not: {what}")
        return timeout

    # -- looking -----------------------------------------------------------------

    def ready_nodes(self) -> set[str]:
        return {n["metadata"]["name"] for n in self.items("nodes") if _ready(n)}

    def web(self) -> list[Object]:
        """The web Pods that are ready and not on their way out."""
        return [
            p
            for p in self.items("pods", "-l", "app=web")
            if _ready(p) and "deletionTimestamp" not in p["metadata"]
        ]

    def per_zone(self) -> list[int]:
        counts = Counter(p["spec"]["nodeName"].rsplit("-", 1)[0] for p in self.web())
        return [counts[zone] for zone in ZONES]

    # -- the story ---------------------------------------------------------------

    def run(self) -> None:
        self.nodes()
        self.deploy()
        self.talk()
        self.roll()
        self.zone_loss()
        self.cold_starts()
        self.delete()

    def nodes(self) -> None:
        self.say("Three zones with two cells each: six nodes from one agent")
        self.show("get", "nodes", "-L", "topology.kubernetes.io/zone")
        self.result["kubernetes"] = json.loads(self.kubectl("version", "-o", "json"))[
            "serverVersion"
        ]["gitVersion"]
        ready = self.ready_nodes()
        self.result["nodes"] = len(ready)
        zones = {
            n["metadata"]["labels"].get("topology.kubernetes.io/zone") for n in self.items("nodes")
        }
        self.result["zones"] = len(zones)
        self.expect(ready == set(CELLS), f"ready nodes are {sorted(ready)}")

    def deploy(self) -> None:
        self.say("An unchanged Deployment, spread over the zones")
        self.show("apply", "-f", str(self.example))
        self.show("rollout", "status", "deployment/web", "--timeout=60s")
        self.show("get", "pods", "-o", "wide")
        self.result["running"] = len(self.web())
        self.result["per_zone"] = self.per_zone()
        self.expect(self.result["per_zone"] == [2, 2, 2], "the Pods are not spread 2, 2, 2")

    def talk(self) -> None:
        self.say("Pods of different zones reach each other; logs and exec as on any node")
        pods = {p["spec"]["nodeName"].rsplit("-", 1)[0]: p for p in self.web()}
        here, there = pods[ZONES[0]], pods[ZONES[-1]]
        name, other = here["metadata"]["name"], there["metadata"]["name"]
        answer = self.show(
            "exec",
            name,
            "--",
            "sh",
            "-c",
            f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {there['status']['podIP']} 8080",
        )
        self.result["http_ok"] = self.expect(
            f"hello from {other} on {there['spec']['nodeName']}" in answer,
            f"{name} got no answer from {other}",
        )
        logs = self.show("logs", name)
        self.result["logs_ok"] = self.expect(f"serving {name} on port 8080" in logs, "wrong log")
        print(f"$ kubectl exec {name} -- sh -c 'exit 7'; echo $?", flush=True)
        done = self.kubectl.run("exec", name, "--", "sh", "-c", "exit 7", check=False)
        print(f"  {done.returncode}", flush=True)
        self.result["exec_exit_code"] = done.returncode
        self.expect(done.returncode == 7, f"exec's exit code was {done.returncode}, not 7")

    def roll(self) -> None:
        self.say("A rolling update, then more replicas")
        before = {p["metadata"]["uid"] for p in self.web()}
        self.show("set", "env", "deployment/web", "COLOUR=green")
        self.show("rollout", "status", "deployment/web", "--timeout=90s")
        after = {p["metadata"]["uid"] for p in self.web()}
        self.result["rolled"] = self.expect(
            len(after) == 6 and not before & after, "the update left old Pods"
        )
        self.show("scale", "deployment/web", "--replicas=9")
        self.show("rollout", "status", "deployment/web", "--timeout=60s")
        self.result["scaled"] = len(self.web())
        self.expect(self.per_zone() == [3, 3, 3], f"nine Pods lie {self.per_zone()}")

    def zone_loss(self) -> None:
        lost_cells = {c for c in CELLS if c.startswith(LOST)}
        self.say(f"Zone {LOST} dies: its containerd and its pool are killed with SIGKILL")
        self.break_zone(LOST)
        took = self.until(
            lambda: self.ready_nodes() == set(CELLS) - lost_cells,
            f"exactly {sorted(lost_cells)} not ready",
            30,
        )
        self.show("get", "nodes", "-L", "topology.kubernetes.io/zone")
        ready = self.ready_nodes()
        loss: Object = {
            "nodes_not_ready": len(lost_cells - ready),
            "others_ready": len(ready - lost_cells),
        }
        replaced = self.until(
            lambda: len([p for p in self.web() if p["spec"]["nodeName"] not in lost_cells]) == 9,
            "nine ready Pods in the other zones",
            60,
        )
        loss["replaced_s"] = round(took + replaced, 1)
        self.show("get", "pods", "-o", "wide")

        self.say(f"Zone {LOST} comes back and takes Pods again")
        self.restore_zone(LOST)
        back = self.until(lambda: self.ready_nodes() == set(CELLS), "all nodes ready again", 40)
        # Kubernetes does not move running Pods by itself; the next revision spreads.
        self.show("rollout", "restart", "deployment/web")
        again = self.until(lambda: self.per_zone() == [3, 3, 3], "three Pods in each zone", 60)
        loss["recovered_s"] = round(back + again, 1)
        self.show("rollout", "status", "deployment/web", "--timeout=60s")
        self.show("get", "pods", "-o", "wide")
        self.expect(loss["nodes_not_ready"] == 2, "not both nodes of the zone went NotReady")
        self.expect(loss["others_ready"] == 4, "a node of another zone went NotReady")
        self.result["zone_loss"] = loss

    def cold_starts(self) -> None:
        self.say(f"{COLD_STARTS} cold starts, one after another, as a watcher sees them")
        times = [self.one_cold_start(f"cold-{i}") for i in range(COLD_STARTS)]
        print("  " + ", ".join(f"{t:.0f} ms" for t in times), flush=True)
        self.result["create_to_running_ms_p50"] = round(statistics.median(times))

    def one_cold_start(self, name: str) -> float:
        """Milliseconds between the watcher's first sight of a Pod and Running."""
        watch = subprocess.Popen(
            self.kubectl.command(
                "get", "pods", "--field-selector", f"metadata.name={name}", "--watch-only",
                "--no-headers", "-o", "custom-columns=P:.status.phase",
            ),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        guard = threading.Timer(30, watch.kill)
        guard.start()
        try:
            # The watch must be open before the Pod is made.
            time.sleep(0.7)
            self.kubectl("create", "-f", "-", input=json.dumps(_cold_pod(name)).encode())
            assert watch.stdout is not None
            first = 0.0
            for line in watch.stdout:
                first = first or time.monotonic()
                if line.strip() == b"Running":
                    return (time.monotonic() - first) * 1000
            self.expect(False, f"{name} was not Running within 30 s")
            return 30_000.0
        finally:
            guard.cancel()
            watch.kill()
            watch.communicate()

    def delete(self) -> None:
        self.say("Deletion: the objects go when the sandboxes are gone")
        self.show("delete", "deployment/web")
        self.kubectl("delete", "pods", "-l", "app=cold", "--wait=false")
        self.show("wait", "--for=delete", "pods", "-l", "app in (web, cold)", "--timeout=60s")
        left = [p["metadata"]["name"] for p in self.items("pods")]
        self.result["pods_left"] = len(left)
        self.expect(not left, f"Pods left: {left}")


def _ready(thing: Object) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _cold_pod(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "cold"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "busybox:1.36", "command": ["sleep", "3600"]}],
        },
    }
