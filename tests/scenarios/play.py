"""Plays one scenario: makes its namespace and objects, goes through its steps, cleans up.

Where a step looks for something in a Pod's history: an expectation is met by any version of
the Pod that is not older than the one which met the step before. So what lasts only a moment
is not missed, and what was true once before does not count again. A step that does something
moves that point to the version that was current as it began.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tests.scenarios import report
from tests.scenarios.api import KINDS, PATCHES, ApiRefused, place
from tests.scenarios.facts import broken_promises, event_facts, pod_facts
from tests.scenarios.follow import Follower, moment
from tests.scenarios.format import LONGEST, Scenario, Step
from tests.scenarios.history import Version
from tests.scenarios.stage import Act, Fault, Stage
from tests.scenarios.values import holds, problems, text_problems

#: Seconds between two looks where there is nothing to watch.
_AGAIN = 0.4
_BLANK = re.compile(r"\$\{([a-z][\w-]*(?:\.[A-Za-z]+)?)\}")


class ScenarioFailed(AssertionError):
    """A scenario that did not come out as its file says; the text tells what and all around it."""


@dataclass(frozen=True)
class _Answer:
    """What a command said."""

    exit_code: int
    output: str
    stderr: str


class Play:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario, stage: Stage, namespace: str) -> None:
        self.scenario = scenario
        self.stage = stage
        self.namespace = namespace
        self.space = stage.history.open(namespace)
        self.begun = time.monotonic()
        #: Of a step: not before, and not after.
        self.moments: dict[str, tuple[float, float]] = {}
        self._cursor = 0
        self._kube = replace(stage.kube, namespace=namespace)
        self._followers: dict[tuple[str, str], Follower] = {}
        self._global: list[tuple[str, str]] = []

    async def run(self) -> None:
        """Raises ScenarioFailed."""
        step: Step | None = None
        try:
            async with asyncio.timeout(LONGEST):
                await self._prepare()
                for step in self.scenario.steps:
                    await self.take(step)
                self._check_history()
        except (AssertionError, ApiRefused, TimeoutError, RuntimeError, LookupError) as problem:
            what = "took too long" if isinstance(problem, TimeoutError) else str(problem)
            where = f"{step}" if step else "its objects"
            raise ScenarioFailed(await report.of_failure(self, where, what)) from None
        finally:
            await self._clean()

    # -- around it

    async def _prepare(self) -> None:
        api = self.stage.api
        await api.call(
            "POST",
            "api/v1/namespaces",
            {"metadata": {"name": self.namespace, "labels": {"vknode.dev/test": "scenario"}}},
        )
        for kind, name in (("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")):
            while await api.get(kind, self.namespace, name) is None:
                await asyncio.sleep(0.1)
        for thing in self.scenario.objects:
            await self._apply(self.fill(thing))

    async def _apply(self, thing: Mapping[str, Any]) -> None:
        if not KINDS[thing["kind"]][2]:
            self._global.append((thing["kind"], thing["metadata"]["name"]))
        await self.stage.api.apply(self.namespace, thing)

    async def _clean(self) -> None:
        for follower in self._followers.values():
            await follower.stop()
        api = self.stage.api
        with suppress(ApiRefused):
            for kind, name in self._global:
                await api.call("DELETE", place(kind, self.namespace, name))
            await api.call("DELETE", f"api/v1/namespaces/{self.namespace}")
            # Quicker than their own grace, and yet in order.
            await api.call("DELETE", place("Pod", self.namespace), {"gracePeriodSeconds": 1})

    def _check_history(self) -> None:
        for name, versions in self.space.pods.items():
            for broken in broken_promises(versions):
                raise AssertionError(f"Pod {name}: {broken}")
        for number, unwanted in enumerate(self.scenario.never, 1):
            pod, wanted = self._wanted(unwanted)
            for version in self.space.pods[pod]:
                if not list(problems(wanted, pod_facts(version.thing))):
                    at = version.at - self.begun
                    raise AssertionError(f"never[{number}] was seen {at:.1f} s after the beginning")

    # -- words

    def fill(self, value: Any) -> Any:
        """`value` with ${namespace}, ${node}, ${registry}, ${digest}, ${POD.FIELD} filled in."""
        if isinstance(value, Mapping):
            return {self.fill(key): self.fill(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.fill(one) for one in value]
        if isinstance(value, str):
            return _BLANK.sub(lambda match: self._blank(match[1], match[0]), value)
        return value

    def _blank(self, name: str, whole: str) -> str:
        known = {
            "namespace": self.namespace,
            "node": self.stage.node,
            "registry": self.stage.registry,
            "digest": self.stage.digest,
        }
        pod, _, what = name.partition(".")
        if not what:
            return known.get(name, whole)  # the shell's own
        versions = self.space.pods.get(pod)
        if not versions:
            raise LookupError(f"{whole}: there was no Pod {pod}")
        thing = versions[-1].thing
        value = {**thing["metadata"], **thing["spec"], **thing.get("status", {})}.get(what)
        if value is None:
            raise LookupError(f"{whole}: the Pod has no {what}")
        return str(value)

    def pod_of(self, about: Mapping[str, Any]) -> str:
        """The Pod that a step is about: the one it names, else the scenario's first."""
        name = about.get("pod") or (self.scenario.pods[0] if self.scenario.pods else "")
        if not name:
            raise LookupError("the step must name its `pod`: the scenario's objects have none")
        return str(name)

    def _wanted(self, about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        wanted = {key: value for key, value in self.fill(about).items() if key != "pod"}
        return self.pod_of(about), wanted

    # -- steps

    async def take(self, step: Step) -> None:
        """One step. Raises AssertionError, ApiRefused, LookupError."""
        count, begun = self.space.count, time.monotonic()
        handler = getattr(self, f"_step_{step.verb}")
        when = await handler(step, self.fill(step.about) if step.verb != "fault" else step.about)
        if step.verb in ("apply", "patch", "delete", "evict", "exec", "kubectl", "fault"):
            self._cursor = max(self._cursor, count)
        if step.name is not None:
            done = (begun, time.monotonic())
            self.moments[step.name] = done if when is None else (when, when)

    async def _changed(self, deadline: float) -> bool:
        """Wait until something happened in the namespace; False when time is up."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        count = self.space.count
        async with self.space.changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.space.changed.wait_for(lambda: self.space.count > count), left
                )
        return True

    def _since(self, pod: str) -> Sequence[Version]:
        """The Pod's versions from the one that was current at the cursor."""
        versions = self.space.pods[pod]
        older = sum(1 for one in versions if one.number <= self._cursor)
        return versions[max(older - 1, 0) :]

    async def _step_expect(self, step: Step, about: Mapping[str, Any]) -> float:
        pod, wanted = self._wanted(about)
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            for version in self._since(pod):
                if not list(problems(wanted, pod_facts(version.thing))):
                    return await self._met(step, pod, wanted, version)
            if not await self._changed(deadline):
                break
        versions = self.space.pods[pod]
        last = pod_facts(versions[-1].thing) if versions else {}
        wrong = list(problems(wanted, last)) or [
            "the last version holds, but it is older than what met the step before"
        ]
        raise AssertionError(f"Pod {pod} is not as expected\n  " + "\n  ".join(wrong))

    async def _met(
        self, step: Step, pod: str, wanted: Mapping[str, Any], version: Version
    ) -> float:
        self._cursor = version.number
        if step.stays:
            until = time.monotonic() + step.stays
            while await self._changed(until):
                for later in self._since(pod):
                    wrong = list(problems(wanted, pod_facts(later.thing)))
                    if wrong:
                        raise AssertionError(
                            f"Pod {pod} did not stay as expected for {step.stays:g} s\n  "
                            + "\n  ".join(wrong)
                        )
            self._cursor = self.space.pods[pod][-1].number
        if step.at is None:
            return version.at
        value: Any = pod_facts(version.thing)
        for key in step.at.split("."):
            value = (value or {}).get(key)
        if not isinstance(value, str):
            raise LookupError(f"the Pod has no time at {step.at}")
        return moment(value)

    def _matching_events(self, about: Mapping[str, Any]) -> list[Version]:
        wanted = dict(about)
        pod = wanted.pop("pod", None)
        if pod or "kind" not in wanted:
            wanted |= {"kind": "Pod", "name": pod or self.pod_of(about)}
        wanted.pop("count", None)
        return [
            one
            for one in self.space.latest_events()
            if not list(problems(wanted, event_facts(one.thing)))
        ]

    async def _step_event(self, step: Step, about: Mapping[str, Any]) -> float:
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            found = self._matching_events(about)
            total = sum(event_facts(one.thing)["count"] for one in found)
            if found and holds(about.get("count", "any"), total):
                return min(one.at for one in found)
            if not await self._changed(deadline):
                break
        seen = report.event_lines(self)
        raise AssertionError(f"no such event: {dict(about)}; there are\n" + "\n".join(seen))

    async def _step_noEvent(self, step: Step, about: Mapping[str, Any]) -> None:
        for one in self._matching_events(about):
            raise AssertionError(f"there is an event {one.thing['reason']}: {one.thing['message']}")

    async def _step_logs(self, step: Step, about: Mapping[str, Any]) -> float | None:
        pod = self.pod_of(about)
        container = about.get("container") or self._first_container(pod)
        follower = self._followers.get((pod, container)) if not about.get("previous") else None
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            if follower is not None:
                for at, text in follower.growing():
                    if not list(text_problems(about["output"], text, "logs")):
                        return at
                text = follower.text
            else:
                text = await self.logs(pod, container, previous=bool(about.get("previous")))
            wrong = list(text_problems(about["output"], text, f"logs of {container}"))
            if not wrong:
                return None
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(wrong))
            await asyncio.sleep(_AGAIN)

    async def logs(self, pod: str, container: str, *, previous: bool = False) -> str:
        """A container's log; a refusal is the answer's text."""
        path = f"{place('Pod', self.namespace, pod, 'log')}?container={container}"
        try:
            return await self.stage.api.text("GET", path + ("&previous=true" if previous else ""))
        except ApiRefused as problem:
            return f"refused: {problem.message}"

    def _first_container(self, pod: str) -> str:
        versions = self.space.pods.get(pod)
        if not versions:
            raise LookupError(f"there was no Pod {pod}")
        return str(versions[-1].thing["spec"]["containers"][0]["name"])

    async def _step_object(self, step: Step, about: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            thing = await self.stage.api.get(about["kind"], self.namespace, about["name"])
            wrong = list(problems(about["match"], thing, about["kind"]))
            if not wrong:
                return
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(wrong))
            await asyncio.sleep(_AGAIN)

    async def _step_gone(self, step: Step, name: str) -> float:
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            versions = self.space.pods[name]
            if versions and versions[-1].gone:
                return versions[-1].at
            if not await self._changed(deadline):
                raise AssertionError(f"Pod {name} is still there")

    async def _step_time(self, step: Step, about: Mapping[str, Any]) -> None:
        # What a step does was done at some moment of it: that it came back late, on a busy
        # machine, makes nothing quicker.
        early, late = self.moments[about["from"]]
        end = self.moments[about["to"]][1]
        least, most = about.get("atLeast", float("-inf")), about.get("atMost", float("inf"))
        if end - early < least or end - late > most:
            raise AssertionError(
                f"from {about['from']} to {about['to']} it took {end - late:.2f} to "
                f"{end - early:.2f} s, wanted {least:g} to {most:g} s"
            )

    async def _step_apply(self, step: Step, about: Mapping[str, Any]) -> None:
        await self._apply(about)

    async def _step_patch(self, step: Step, about: Mapping[str, Any]) -> None:
        path = place(about["kind"], self.namespace, about["name"], about.get("subresource", ""))
        kind = PATCHES[about.get("type", "strategic")]
        try:
            await self.stage.api.call("PATCH", path, about["body"], kind=kind)
        except ApiRefused as problem:
            if not holds(about.get("refused"), problem.message):
                raise
        else:
            assert "refused" not in about, "the API server took the patch"

    async def _step_delete(self, step: Step, about: Mapping[str, Any]) -> None:
        body = {key: value for key, value in about.items() if key == "gracePeriodSeconds"}
        await self.stage.api.call(
            "DELETE", place(about["kind"], self.namespace, about["name"]), body or None
        )

    async def _step_evict(self, step: Step, name: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        await self.stage.api.call("POST", place("Pod", self.namespace, name, "eviction"), body)

    async def _step_exec(self, step: Step, about: Mapping[str, Any]) -> None:
        pod = self.pod_of(about)
        container = about.get("container") or self._first_container(pod)
        command = about.get("command") or ["sh", "-c", about["run"]]
        await self._command(step, about, ["exec", pod, "-c", container, "--", *command])

    async def _step_kubectl(self, step: Step, about: Mapping[str, Any]) -> None:
        await self._command(step, about, about["args"])

    async def _command(self, step: Step, about: Mapping[str, Any], args: Sequence[str]) -> None:
        deadline = time.monotonic() + step.patience(self.stage.target)
        while True:
            answer = await self._kubectl(args, about.get("input"))
            wrong = list(problems(about.get("exitCode", 0), answer.exit_code, "exit code"))
            for name, text in (("output", answer.output), ("stderr", answer.stderr)):
                if name in about:
                    wrong += text_problems(about[name], text, name)
            if not wrong:
                return
            if time.monotonic() > deadline:
                said = answer.output[-800:] + answer.stderr[-800:]
                raise AssertionError(
                    f"kubectl {shlex.join(args)}\n  " + "\n  ".join(wrong) + f"\n{said}"
                )
            await asyncio.sleep(_AGAIN)

    async def _kubectl(self, args: Sequence[str], given: str | None) -> _Answer:
        stdin = asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._kube.argv(*args),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._kube.environment(),
        )
        try:
            out, err = await process.communicate(None if given is None else given.encode())
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        return _Answer(
            process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
        )

    async def describe(self, pod: str) -> str:
        """What `kubectl describe` says of a Pod."""
        return (await self._kubectl(["describe", "pod", pod], None)).output

    async def _step_follow(self, step: Step, about: Mapping[str, Any]) -> None:
        pod, container = self.pod_of(about), about["container"]
        follower = Follower(self.stage.api, self.namespace, pod, container)
        self._followers[pod, container] = follower
        await follower.start()

    async def _step_fault(self, step: Step, about: Mapping[str, Any]) -> None:
        def steps(name: str) -> Act:
            async def run() -> None:
                for inner in about.get(name, ()):
                    await self.take(inner)

            return run

        fault = Fault(about["kill"], about["away"], steps("before"), steps("meanwhile"))
        await self.stage.faults.meet(self.scenario.name, fault)
