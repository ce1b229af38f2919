"""The real kubectl in one namespace, as the tests use it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.until import until

Object = dict[str, Any]


class Background(subprocess.Popen[bytes]):
    """A kubectl that a failing test does not wait for: `with` kills it then."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, trace)


@dataclass(frozen=True)
class Kube:
    """kubectl with the cluster administrator's kubeconfig and one namespace."""

    kubectl: Path
    kubeconfig: Path
    namespace: str

    def argv(self, *args: str) -> list[str]:
        return [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", "-n", self.namespace, *args]

    def environment(self) -> dict[str, str]:
        # No cache or preferences of the person who runs the tests.
        return {"PATH": os.environ["PATH"], "HOME": str(self.kubeconfig.parent)}

    def run(
        self,
        *args: str,
        input: str | None = None,
        check: bool = True,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; with `check` a failure is an AssertionError with its output."""
        done = subprocess.run(
            self.argv(*args),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"kubectl {' '.join(args)} exited with {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def out(self, *args: str, timeout: float = 120.0) -> str:
        return self.run(*args, timeout=timeout).stdout

    def popen(self, *args: str, **options: Any) -> Background:
        return Background(self.argv(*args), env=self.environment(), **options)

    def apply(self, *objects: Object | str) -> None:
        for one in objects:
            self.run("apply", "-f", "-", input=one if isinstance(one, str) else json.dumps(one))

    def json(self, *args: str) -> Object:
        answer: Object = json.loads(self.out(*args, "-o", "json"))
        return answer

    def get(self, kind: str, name: str) -> Object | None:
        done = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def items(self, kind: str, selector: str | None = None) -> list[Object]:
        args = ["get", kind] + (["-l", selector] if selector else [])
        answer: list[Object] = self.json(*args)["items"]
        return answer

    def pod(self, name: str) -> Object:
        return self.json("get", "pod", name)

    def wait_phase(self, name: str, *phases: str, timeout: float = 60.0) -> Object:
        """The Pod once it is in one of the phases."""

        def look() -> Object | None:
            pod = self.get("pod", name)
            return pod if pod and pod["status"].get("phase") in phases else None

        return until(
            look,
            f"Pod {name} {'/'.join(phases)}",
            timeout=timeout,
            show=lambda: self.describe(name),
        )

    def ready_pods(self, selector: str, count: int, timeout: float = 90.0) -> list[Object]:
        """All Pods of the selector once exactly `count` are Ready and none is ending."""

        def look() -> list[Object] | None:
            pods = self.items("pods", selector)
            return pods if len(pods) == count and all(map(is_ready, pods)) else None

        return until(
            look,
            f"{count} ready Pods of {selector}",
            timeout=timeout,
            show=lambda: self.out("get", "pods", "-l", selector, "-o", "wide"),
        )

    def gone(self, kind: str, name: str, timeout: float = 60.0) -> None:
        until(lambda: self.get(kind, name) is None, f"{kind} {name} gone", timeout=timeout)

    def describe(self, name: str) -> str:
        return self.run("describe", "pod", name, check=False).stdout[-3000:]

    def events(self, name: str) -> list[Object]:
        return [e for e in self.items("events") if e["involvedObject"]["name"] == name]


def is_ready(pod: Object) -> bool:
    return condition(pod, "Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def condition(thing: Object, kind: str) -> str | None:
    """Status of a condition of a Pod or Node, None where it has none."""
    for entry in thing.get("status", {}).get("conditions", ()):
        if entry["type"] == kind:
            return str(entry["status"])
    return None


def simple_pod(
    name: str,
    command: Sequence[str] = ("sleep", "3600"),
    *,
    image: str = "busybox:1.36",
    labels: dict[str, str] | None = None,
    grace: int = 1,
    restart: str = "Always",
    **spec: Any,
) -> Object:
    """A Pod of one container called `main`."""
    container: Object = {"name": "main", "image": image, "command": list(command)}
    container.update(spec.pop("container", {}))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "restartPolicy": restart,
            "containers": [container],
            **spec,
        },
    }


def deployment(
    name: str,
    replicas: int,
    command: Sequence[str] = ("sleep", "3600"),
    *,
    image: str = "busybox:1.36",
    **spec: Any,
) -> Object:
    """A Deployment whose Pods carry the label app=NAME."""
    pod = simple_pod(name, command, image=image, **spec)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": pod["metadata"] | {"name": None}, "spec": pod["spec"]},
        },
    }
