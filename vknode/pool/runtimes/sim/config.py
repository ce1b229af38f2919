"""The simulation's configuration file (`vknode pool --runtime sim --sim-config FILE`).

    seed: 7                       # the same seed draws the same latencies and failures
    subnet: 10.70.0.0/16          # Pod IPs; without it one derived from the zone's name
    runtime_handlers: [gvisor]
    networks: [tenant-a]          # names that SandboxSpec.network.name may have
    latency:                      # log-normal: two thirds lie within median / spread
      sandbox: {median: 60ms, spread: 1.4}      # and median * spread
      image_pull: {median: 200ms}
      container: {median: 40ms}
      stop: {median: 20ms}
      probe: {median: 0ms}
      hook: {median: 0ms}
    failures: {sandbox: 0.01, image_pull: 0.05, container: 0.02, probe: 0.001, hook: 0}
    outages:                      # the runtime goes away, seconds after the start
      - {after: 30s, for: 10s}
    scripts:                      # the first match wins; Pod annotations win over it
      - match: {namespace: "chaos-*", name: "*", container: "*", image: "*"}
        behaviour: {exit-after: 5s, exit-code: 3}

`behaviour` takes the words of the Pod annotations, see `behaviour.py`.
"""

from __future__ import annotations

import ipaddress
import math
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vknode.pool.runtimes.sim.behaviour import BehaviourError, Script, check_behaviour
from vknode.pool.runtimes.sim.durations import parse_duration


class SimConfigError(ValueError):
    """The file cannot be used; the text names the file, the field and the fix."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A log-normal distribution of seconds."""

    median: float
    spread: float = 1.0

    def draw(self, rng: random.Random) -> float:
        if self.spread == 1.0 or self.median == 0:
            return self.median
        return self.median * math.exp(rng.gauss(0, math.log(self.spread)))


@dataclass(frozen=True, slots=True)
class Outage:
    after: float
    duration: float


@dataclass(frozen=True, slots=True)
class SimConfig:
    seed: int = 0
    subnet: str = ""
    runtime_handlers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    latency: dict[str, Latency] = field(default_factory=dict)
    failures: dict[str, float] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()
    scripts: tuple[Script, ...] = ()

    def latency_of(self, what: str) -> Latency:
        return self.latency.get(what, DEFAULT_LATENCY[what])


DEFAULT_LATENCY = {
    "sandbox": Latency(0.060, 1.4),
    "image_pull": Latency(0.200, 1.6),
    "container": Latency(0.040, 1.4),
    "stop": Latency(0.020, 1.4),
    "probe": Latency(0.0),
    "hook": Latency(0.0),
}
_FAILURES = ("sandbox", "image_pull", "container", "probe", "hook")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MATCH = ("namespace", "name", "container", "image")


def zone_subnet(zone: str) -> str:
    """A /16 for a zone's Pods; names that differ in one letter get different ones."""
    return f"10.{64 + sum(zone.encode()) % 64}.0.0/16"


def load_config(path: Path) -> SimConfig:
    """Raises SimConfigError."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SimConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SimConfigError(f"{path}: is not YAML: {error}") from error
    try:
        return parse_config(raw)
    except SimConfigError as error:
        raise SimConfigError(f"{path}: {error}") from error


def parse_config(raw: Any) -> SimConfig:
    """The configuration in a loaded YAML document. Raises SimConfigError."""
    top = _mapping(
        "the document",
        {} if raw is None else raw,
        (
            "seed",
            "subnet",
            "runtime_handlers",
            "networks",
            "latency",
            "failures",
            "outages",
            "scripts",
        ),
    )
    latency = {}
    for what, entry in _mapping("latency", top.get("latency", {}), DEFAULT_LATENCY).items():
        fields = _mapping(f"latency.{what}", entry, ("median", "spread"))
        if "median" not in fields:
            raise SimConfigError(f"latency.{what}.median: is missing; give it as 50ms")
        spread = _number(f"latency.{what}.spread", fields.get("spread", 1.0))
        if not 1 <= spread <= 100:
            raise SimConfigError(f"latency.{what}.spread: {spread} is not a factor from 1 to 100")
        latency[what] = Latency(_duration(f"latency.{what}.median", fields["median"]), spread)
    failures = {}
    for what, value in _mapping("failures", top.get("failures", {}), _FAILURES).items():
        failures[what] = _number(f"failures.{what}", value)
        if not 0 <= failures[what] <= 1:
            raise SimConfigError(f"failures.{what}: {value} is not a probability from 0 to 1")
    outages = []
    for index, entry in enumerate(_list("outages", top.get("outages", []))):
        where = f"outages[{index}]"
        fields = _mapping(where, entry, ("after", "for"))
        if missing := {"after", "for"} - fields.keys():
            raise SimConfigError(f"{where}.{min(missing)}: is missing; give it as 30s")
        outages.append(
            Outage(
                _duration(f"{where}.after", fields["after"]),
                _duration(f"{where}.for", fields["for"]),
            )
        )
    scripts = []
    for index, entry in enumerate(_list("scripts", top.get("scripts", []))):
        where = f"scripts[{index}]"
        fields = _mapping(where, entry, ("match", "behaviour"))
        match = _mapping(f"{where}.match", fields.get("match", {}), _MATCH)
        behaviour = {
            str(key): _text(value)
            for key, value in _mapping(
                f"{where}.behaviour", fields.get("behaviour", {}), None
            ).items()
        }
        try:
            check_behaviour(behaviour)
        except BehaviourError as error:
            raise SimConfigError(f"{where}.behaviour.{error.key}: {error}") from error
        scripts.append(Script({key: str(value) for key, value in match.items()}, behaviour))
    seed = top.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise SimConfigError(f"seed: {seed!r} is not a whole number")
    handlers = _names("runtime_handlers", top.get("runtime_handlers", []))
    networks = _names("networks", top.get("networks", []))
    subnet = top.get("subnet", "")
    if subnet:
        try:
            network = ipaddress.IPv4Network(str(subnet))
        except ValueError as error:
            raise SimConfigError(f"subnet: {error}; give it as 10.70.0.0/16") from error
        if network.prefixlen > 28:
            raise SimConfigError(f"subnet: {subnet} has too few addresses; use a /28 or larger")
        subnet = str(network)
    return SimConfig(
        seed=seed,
        subnet=subnet,
        runtime_handlers=handlers,
        networks=networks,
        latency=latency,
        failures=failures,
        outages=tuple(sorted(outages, key=lambda outage: outage.after)),
        scripts=tuple(scripts),
    )


def _mapping(where: str, value: Any, known: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SimConfigError(f"{where}: must be a mapping, not {type(value).__name__}")
    for key in value:
        if known is not None and key not in known:
            raise SimConfigError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SimConfigError(f"{where}: must be a list, not {type(value).__name__}")
    return value


def _names(where: str, value: Any) -> tuple[str, ...]:
    names = _list(where, value)
    for index, name in enumerate(names):
        if not isinstance(name, str) or not _LABEL.fullmatch(name):
            raise SimConfigError(f"{where}[{index}]: {name!r} is not a DNS label such as gvisor")
    return tuple(names)


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SimConfigError(f"{where}: {value!r} is not a number")
    return float(value)


def _duration(where: str, value: Any) -> float:
    try:
        return parse_duration(str(value))
    except ValueError as error:
        raise SimConfigError(f"{where}: {error}") from error


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
