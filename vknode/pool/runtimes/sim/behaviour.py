"""How one simulated container behaves: from Pod annotations and configured scripts.

A Pod annotation `sim.vknode.dev/WORD` holds for all its containers, and
`sim.vknode.dev/WORD.CONTAINER` for one of them.

| word             | value    | effect                                                     |
|------------------|----------|------------------------------------------------------------|
| sandbox-latency  | duration | how long the sandbox takes to be there                     |
| start-latency    | duration | how long the container takes to start                      |
| pull-latency     | duration | how long the image takes to come                           |
| image-pull-error | text     | every pull fails with this message                         |
| sandbox-error    | text     | the sandbox cannot be made, with this message              |
| start-error      | text     | the container cannot be started, with this message         |
| exit-after       | duration | it ends by itself so long after its start                  |
| exit-code        | number   | with this exit code (0)                                    |
| exit-reason      | word     | with this reason, for example OOMKilled                    |
| ignore-sigterm   | boolean  | only SIGKILL ends it                                       |
| stop-latency     | duration | how long it takes to end after SIGTERM                     |
| log-lines        | number   | lines printed right at the start                           |
| log-every        | duration | one more line each time                                    |
| log-line         | text     | what these lines say; {n} is the line's number             |
| exec-exit-code   | number   | every exec (probes and hooks too) ends with it             |
| probe-latency    | duration | how long each probe takes                                  |
| probe-error      | text     | its probes fail with this message                          |
| probe-fail-after | duration | its probes fail only from so long after its start on       |
| probe-fail-until | duration | its probes fail only until so long after its start         |
| probe-only       | text     | these hold only for probes of this path, port or command   |
| hook-latency     | duration | how long each hook takes                                   |
| hook-error       | text     | its hooks fail with this message                           |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vknode.pool.runtimes.sim.durations import parse_duration
from vknode.pool.v1 import spec_pb2

PREFIX = "sim.vknode.dev/"


class BehaviourError(ValueError):
    """A word is unknown or its value is wrong; `key` is the word."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Seconds where a time; None where nothing was said."""

    sandbox_latency: float | None = None
    start_latency: float | None = None
    pull_latency: float | None = None
    image_pull_error: str = ""
    sandbox_error: str = ""
    start_error: str = ""
    exit_after: float | None = None
    exit_code: int | None = None
    exit_reason: str = ""
    ignore_sigterm: bool = False
    stop_latency: float | None = None
    log_lines: int = 0
    log_every: float | None = None
    log_line: str = "line {n}"
    exec_exit_code: int | None = None
    probe_latency: float | None = None
    probe_error: str = ""
    probe_fail_after: float | None = None
    probe_fail_until: float | None = None
    probe_only: str | None = None
    hook_latency: float | None = None
    hook_error: str = ""


NO_BEHAVIOUR = Behaviour()


@dataclass(frozen=True, slots=True)
class Script:
    """Behaviour for every container that matches all patterns."""

    match: dict[str, str]
    behaviour: dict[str, str]

    def fits(self, namespace: str, name: str, container: str, image: str) -> bool:
        facts = {"namespace": namespace, "name": name, "container": container, "image": image}
        return all(fnmatchcase(facts[key], pattern) for key, pattern in self.match.items())


def _seconds(text: str) -> float:
    return parse_duration(text)


def _code(text: str) -> int:
    if not text.isdecimal() or int(text) > 255:
        raise ValueError(f"{text!r} is not an exit code from 0 to 255")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 100_000_000:
        raise ValueError(f"{text!r} is not a number of lines up to 100000000")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _period(text: str) -> float:
    value = parse_duration(text)
    if value < 0.001:
        raise ValueError(f"{text!r} is shorter than 1ms")
    return value


_WORDS: dict[str, Callable[[str], object]] = {
    "sandbox-latency": _seconds,
    "start-latency": _seconds,
    "pull-latency": _seconds,
    "image-pull-error": str,
    "sandbox-error": str,
    "start-error": str,
    "exit-after": _seconds,
    "exit-code": _code,
    "exit-reason": str,
    "ignore-sigterm": _boolean,
    "stop-latency": _seconds,
    "log-lines": _count,
    "log-every": _period,
    "log-line": str,
    "exec-exit-code": _code,
    "probe-latency": _seconds,
    "probe-error": str,
    "probe-fail-after": _seconds,
    "probe-fail-until": _seconds,
    "probe-only": str,
    "hook-latency": _seconds,
    "hook-error": str,
}


def check_behaviour(words: Mapping[str, str]) -> Behaviour:
    """Raises BehaviourError for the first word that is unknown or wrong."""
    values: dict[str, object] = {}
    for key, text in words.items():
        parse = _WORDS.get(key)
        if parse is None:
            raise BehaviourError(key, f"is not known; known are {', '.join(_WORDS)}")
        try:
            values[key.replace("-", "_")] = parse(text)
        except ValueError as error:
            raise BehaviourError(key, str(error)) from error
    if not values:
        return NO_BEHAVIOUR
    return Behaviour(**values)  # type: ignore[arg-type]  # each word's parser gives its field's type


def annotation_words(spec: spec_pb2.SandboxSpec, container: str) -> dict[str, str]:
    """The words of a Pod's annotations for one container ("" for the sandbox itself)."""
    everywhere: dict[str, str] = {}
    here: dict[str, str] = {}
    for key, value in spec.annotations.items():
        if not key.startswith(PREFIX):
            continue
        word, dot, target = key[len(PREFIX) :].partition(".")
        if not dot:
            everywhere[word] = value
        elif target == container:
            here[word] = value
    return everywhere | here


def behaviour_of(
    spec: spec_pb2.SandboxSpec, container: str, image: str, scripts: Iterable[Script]
) -> Behaviour:
    """Raises BehaviourError for wrong annotations."""
    words: dict[str, str] = {}
    for script in scripts:
        if script.fits(spec.namespace, spec.name, container, image):
            words.update(script.behaviour)
            break
    words.update(annotation_words(spec, container))
    return check_behaviour(words)
