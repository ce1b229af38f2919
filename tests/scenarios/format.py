"""Reads scenario files; README.md beside this file describes them. Pure but for reading files.

Strict: whatever is not known is an error that names the file, the place in it and the fix.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.scenarios.values import check_wish

FOLDER = Path(__file__).parent
TARGETS = ("kubelet", "vknode")

#: How long a step waits for what it expects, in seconds, where it does not say `within`.
PATIENCE = {"expect": 90.0, "gone": 90.0, "event": 60.0, "logs": 60.0, "object": 90.0}
#: A whole scenario, in seconds.
LONGEST = 480.0


class BadScenario(Exception):
    """A scenario file that is not one; the text says where and why."""


@dataclass(frozen=True)
class Step:
    """One step. `verb` is its key, `about` what stands below it; times are in seconds."""

    number: int
    verb: str
    about: Any
    within: Mapping[str, float]
    name: str | None = None  # `as`: the moment at which it was met or done
    at: str | None = None  # the moment is rather the one that this field of the Pod holds
    stays: float = 0.0

    def patience(self, target: str) -> float:
        return self.within.get(target, PATIENCE.get(self.verb, 0.0))

    def __str__(self) -> str:
        return f"step {self.number}, {self.verb}"


@dataclass(frozen=True)
class Scenario:
    """One file. `pods` are the names of the Pods among its objects."""

    name: str  # folder/file
    title: str
    objects: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]
    never: tuple[Mapping[str, Any], ...]
    digest: str
    only: str | None = None
    why: str = ""
    slow: float = 10.0  # how long it takes, about: the slow ones begin first
    pods: tuple[str, ...] = field(default=())

    @property
    def has_fault(self) -> bool:
        return any(step.verb == "fault" for step in self.steps)

    def runs_on(self, target: str) -> bool:
        return self.only in (None, target)


Check = Callable[[Any, str], Any]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadScenario(f"{where} must be a text, not {value!r}")
    return value


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadScenario(f"{where} must be a number, not {value!r}")
    return value


def _wish(value: Any, where: str) -> Any:
    try:
        check_wish(value)
    except ValueError as problem:
        raise BadScenario(f"{where}: {problem}") from None
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadScenario(f"{where} must be a mapping, not {value!r}")
    return value


def _words(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadScenario(f"{where} must be a list of texts, not {value!r}")
    return value


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def duration(value: Any, where: str) -> float:
    """`500ms`, `2s`, `1m` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", str(value))
    if match is None:
        raise BadScenario(f"{where} must be a duration like 500ms, 2s or 1m, not {value!r}")
    return float(match[1]) * _UNITS[match[2]]


def _one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> str:
        if value not in words:
            raise BadScenario(f"{where} must be one of {', '.join(words)}, not {value!r}")
        return str(value)

    return check


def _keys(known: Mapping[str, Check], *required: str) -> Check:
    def check(value: Any, where: str) -> dict[str, Any]:
        found = {}
        for key, inner in _mapping(value, where).items():
            if key not in known:
                raise BadScenario(f"{where} has no key {key!r}; it may have {', '.join(known)}")
            found[key] = known[key](inner, f"{where}.{key}")
        for key in required:
            if key not in found:
                raise BadScenario(f"{where} lacks {key!r}")
        return found

    return check


def _if_any(inner: Check) -> Check:
    return lambda value, where: value if value in ("any", "none") else inner(value, where)


def _named(inner: Check) -> Check:
    one = _if_any(inner)
    return lambda value, where: {
        str(key): one(below, f"{where}.{key}") for key, below in _mapping(value, where).items()
    }


def _condition(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        keys = ("status", "reason", "message", "observedGeneration", "lastTransitionTime")
        return _keys(dict.fromkeys(keys, _wish))(value, where)
    return {"status": _one_of("True", "False", "Unknown", "any")(value, where)}


_TERMINATED = ("reason", "message", "exitCode", "signal", "startedAt", "finishedAt")
_CONTAINER = _keys(
    {
        "state": _one_of("waiting", "running", "terminated"),
        "last": _if_any(_keys(dict.fromkeys(_TERMINATED, _wish))),
        **dict.fromkeys(
            (
                *_TERMINATED,
                *("restartCount", "ready", "started", "image", "imageID", "containerID"),
                *("resources", "allocatedResources", "volumeMounts", "user", "stopSignal"),
            ),
            _wish,
        ),
    }
)
_FACTS: dict[str, Check] = {
    "pod": _text,
    "metadata": _wish,
    "spec": _wish,
    **dict.fromkeys(
        (
            *("phase", "reason", "message", "qosClass", "podIP", "podIPs", "hostIP", "hostIPs"),
            *("startTime", "observedGeneration", "resources", "allocatedResources", "resize"),
        ),
        _wish,
    ),
    "conditions": _named(_condition),
    "containers": _if_any(_named(_CONTAINER)),
}
_EVENT = _keys(
    dict.fromkeys(("pod", "kind", "name", "reason", "type", "message", "container", "count"), _wish)
)
_COMMAND: dict[str, Check] = {"exitCode": _wish, "output": _wish, "stderr": _wish}
_PATCH: dict[str, Check] = {
    "kind": _text,
    "name": _text,
    "subresource": _text,
    "type": _one_of("merge", "strategic", "json"),
    "body": lambda value, where: value,
    "refused": _wish,
}


def _follow(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"container": value}
    keys: dict[str, Check] = {"pod": _text, "container": _text}
    return dict(_keys(keys, "container")(value, where))


def _deletion(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": "Pod", "name": value}
    keys: dict[str, Check] = {
        "kind": _text,
        "name": _text,
        "gracePeriodSeconds": _number,
    }
    return {"kind": "Pod", **_keys(keys, "name")(value, where)}


def _inner_steps(value: Any, where: str) -> tuple[Step, ...]:
    return tuple(_steps(value, where, refused=("fault", "time")))


VERBS: dict[str, Check] = {
    # What must be seen.
    "expect": _keys(_FACTS),
    "event": _EVENT,
    "noEvent": _EVENT,
    "logs": _keys(
        {
            "pod": _text,
            "container": _text,
            "previous": lambda value, where: bool(value),
            "output": _wish,
        },
        "output",
    ),
    "object": _keys({"kind": _text, "name": _text, "match": _wish}, "kind", "name", "match"),
    "gone": _text,
    "time": _keys(
        {"from": _text, "to": _text, "atLeast": duration, "atMost": duration}, "from", "to"
    ),
    # What is done.
    "apply": _mapping,
    "patch": _keys(_PATCH, "kind", "name", "body"),
    "delete": _deletion,
    "evict": _text,
    "exec": _keys(
        {"pod": _text, "container": _text, "run": _text, "command": _words, **_COMMAND},
    ),
    "kubectl": _keys({"args": _words, "input": _text, **_COMMAND}, "args"),
    "follow": _follow,
    "fault": _keys(
        {
            "kill": _one_of("agent", "pool"),
            "away": duration,
            "before": _inner_steps,
            "meanwhile": _inner_steps,
        },
        "kill",
        "away",
    ),
}
_BESIDE = ("within", "as", "at", "stays")


def _steps(value: Any, where: str, refused: tuple[str, ...] = ()) -> Iterator[Step]:
    if not isinstance(value, list):
        raise BadScenario(f"{where} must be a list of steps")
    for number, raw in enumerate(value, 1):
        here = f"{where}[{number}]"
        verbs = [key for key in _mapping(raw, here) if key not in _BESIDE]
        if len(verbs) != 1 or verbs[0] not in VERBS or verbs[0] in refused:
            raise BadScenario(
                f"{here} must have exactly one of {', '.join(VERBS)} (and beside it "
                f"{', '.join(_BESIDE)}), not {', '.join(map(repr, verbs)) or 'nothing'}"
            )
        verb = verbs[0]
        if "stays" in raw and verb != "expect":
            raise BadScenario(f"{here}.stays belongs to `expect` only")
        if "at" in raw and ("as" not in raw or verb != "expect"):
            raise BadScenario(f"{here}.at belongs to `expect` with `as` only")
        yield Step(
            number,
            verb,
            VERBS[verb](raw[verb], f"{here}.{verb}"),
            _within(raw["within"], f"{here}.within") if "within" in raw else {},
            name=_text(raw["as"], f"{here}.as") if "as" in raw else None,
            at=_text(raw["at"], f"{here}.at") if "at" in raw else None,
            stays=duration(raw["stays"], f"{here}.stays") if "stays" in raw else 0.0,
        )


def _with_inner(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.verb == "fault":
            for inner in ("before", "meanwhile"):
                yield from step.about.get(inner, ())


def _within(value: Any, where: str) -> dict[str, float]:
    if isinstance(value, Mapping):
        return dict(_keys(dict.fromkeys(TARGETS, duration), *TARGETS)(value, where))
    return dict.fromkeys(TARGETS, duration(value, where))


def _objects(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise BadScenario(f"{where} must be a list of Kubernetes objects")
    for number, one in enumerate(value, 1):
        here = f"{where}[{number}]"
        for key in ("apiVersion", "kind"):
            _text(_mapping(one, here).get(key), f"{here}.{key}")
        metadata = _mapping(one.get("metadata"), f"{here}.metadata")
        _text(metadata.get("name"), f"{here}.metadata.name")
    return tuple(value)


_TOP = _keys(
    {
        "title": _text,
        "only": _one_of(*TARGETS),
        "why": _text,
        "slow": duration,
        "objects": _objects,
        "steps": lambda value, where: tuple(_steps(value, where)),
        "never": lambda value, where: tuple(
            _keys(_FACTS)(one, f"{where}[{number}]") for number, one in enumerate(value, 1)
        ),
    },
    "title",
    "objects",
    "steps",
)


def parse(text: str, name: str) -> Scenario:
    """The scenario of one file's text. Raises BadScenario."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise BadScenario(f"{name}: no YAML: {problem}") from None
    read = _TOP(raw, name)
    if ("only" in read) != ("why" in read):
        raise BadScenario(f"{name}: `only` and `why` belong together")
    steps: tuple[Step, ...] = read["steps"]
    if not steps:
        raise BadScenario(f"{name}.steps is empty: nothing is expected")
    moments = {step.name for step in _with_inner(steps)}
    for step in steps:
        if step.verb == "time":
            for end in ("from", "to"):
                if step.about[end] not in moments:
                    raise BadScenario(
                        f"{name}.steps[{step.number}].time.{end}: no step has "
                        f"`as: {step.about[end]}`"
                    )
    _check_never(read, name)
    scenario = Scenario(
        name=name,
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        pods=tuple(one["metadata"]["name"] for one in read["objects"] if one["kind"] == "Pod"),
        never=read.pop("never", ()),
        **read,
    )
    if scenario.has_fault and scenario.only != "vknode":
        raise BadScenario(f"{name}: with a `fault` it must say `only: vknode`")
    return scenario


def _check_never(read: Mapping[str, Any], name: str) -> None:
    """What is misspelt is never seen. Raises BadScenario."""
    pods = {one["metadata"]["name"]: one for one in read["objects"] if one["kind"] == "Pod"}
    if not pods:
        return  # what a controller makes of its template
    # Debug containers come by a later step.
    debugged = "ephemeralContainers" in repr(read["steps"]) or "debug" in repr(read["steps"])
    for number, one in enumerate(read.get("never", ()), 1):
        here = f"{name}.never[{number}]"
        pod = one.get("pod", next(iter(pods)))
        if pod not in pods:
            raise BadScenario(f"{here}.pod: there is no Pod {pod!r} among the objects")
        spec = pods[pod].get("spec", {})
        names = {
            container.get("name")
            for key in ("initContainers", "containers")
            for container in spec.get(key, ())
        }
        for container in one.get("containers") or ():
            if container not in names and not debugged:
                raise BadScenario(f"{here}.containers: Pod {pod!r} has no container {container!r}")


def load(pattern: str = "") -> list[Scenario]:
    """All scenarios whose name matches the regular expression, by name. Raises BadScenario."""
    files = sorted(FOLDER.glob("*/*.yaml"))
    names = {file: f"{file.parent.name}/{file.stem}" for file in files}
    return [
        parse(file.read_text(), name) for file, name in names.items() if re.search(pattern, name)
    ]
