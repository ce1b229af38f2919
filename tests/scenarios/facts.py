"""A Pod in the words of scenarios, and what must be true of any Pod's history. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.scenarios.history import Version

_KINDS = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_FINAL = ("Succeeded", "Failed")
_ORDER = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2, "Unknown": 1}


def pod_facts(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The Pod with its conditions by type and its containers by name."""
    status = pod.get("status", {})
    return {
        **status,
        "metadata": pod["metadata"],
        "spec": pod["spec"],
        "conditions": {one["type"]: one for one in status.get("conditions", ())},
        "containers": {
            one["name"]: container_facts(one) for kind in _KINDS for one in status.get(kind, ())
        },
    }


def container_facts(status: Mapping[str, Any]) -> dict[str, Any]:
    """A container's status; what its state holds stands beside it, `last` is lastState."""
    (state,) = status.get("state", {}).keys() or ("waiting",)
    last = status.get("lastState", {}).get("terminated")
    return {**status, "state": state, **status.get("state", {}).get(state, {}), "last": last}


def event_facts(event: Mapping[str, Any]) -> dict[str, Any]:
    """An Event with its object's kind, name and container beside its own fields."""
    about = event["involvedObject"]
    path = about.get("fieldPath", "")
    return {
        **event,
        "kind": about["kind"],
        "name": about.get("name"),
        "container": path.partition("{")[2].rstrip("}") or None,
        "count": event.get("count") or event.get("series", {}).get("count") or 1,
    }


def broken_promises(versions: Sequence[Version]) -> Iterator[str]:
    """What may happen to no Pod but did to this one."""
    by_uid: dict[str, list[Version]] = {}
    for version in versions:
        by_uid.setdefault(version.uid, []).append(version)
    for life in by_uid.values():
        yield from _of_one_life([version.thing for version in life])


def _of_one_life(pods: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    ends: dict[str, tuple[Any, ...]] = {}
    for before, after in pairwise(pods):
        old, new = before.get("status", {}), after.get("status", {})
        phases = old.get("phase", "Pending"), new.get("phase", "Pending")
        started_over = "RestartAllContainers" in str(before["spec"])
        if (_ORDER[phases[1]] < _ORDER[phases[0]] and not started_over) or (
            phases[0] in _FINAL and phases[1] != phases[0]
        ):
            yield f"its phase went from {phases[0]} to {phases[1]}"
        if new.get("observedGeneration", 0) < old.get("observedGeneration", 0):
            yield "its observedGeneration went back"
        counts = {c["name"]: c["restartCount"] for kind in _KINDS for c in old.get(kind, ())}
        for kind in _KINDS:
            for one in new.get(kind, ()):
                if one["restartCount"] < counts.get(one["name"], 0):
                    yield f"the restartCount of {one['name']} went back"
    for pod in pods:
        conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())}
        if conditions.get("Ready") == "True" and conditions.get("ContainersReady") != "True":
            yield "it was Ready while its containers were not"
        for kind in _KINDS:
            for one in pod.get("status", {}).get(kind, ()):
                for state in (one.get("state", {}), one.get("lastState", {})):
                    yield from _of_an_end(one["name"], state.get("terminated"), ends)


def _of_an_end(
    name: str, end: Mapping[str, Any] | None, ends: dict[str, tuple[Any, ...]]
) -> Iterator[str]:
    if end is None or "containerID" not in end:
        return
    told = (end["exitCode"], end.get("startedAt"), end.get("finishedAt"))
    if ends.setdefault(end["containerID"], told) != told:
        yield f"the end of one instance of {name} was told as {ends[end['containerID']]} and {told}"
    if (end.get("startedAt") or "") > (end.get("finishedAt") or "~"):
        yield f"{name} ended before it started: {end}"
