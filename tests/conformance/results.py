"""What whole runs have found, kept in `docs/conformance.json`, and the two targets compared.
Pure but for reading and writing that file.

A spec belongs to one of these, by how it ended on both:

| kubelet | vknode | it is       |                                                     |
|---------|--------|-------------|-----------------------------------------------------|
| passed  | passed | both        |                                                     |
| passed  | else   | kubelet_only| what a Deployment could notice: to be mended        |
| else    | passed | vknode_only | mostly something that this machine denies a kubelet |
| else    | else   | neither     | what this machine or the stand-in images cannot do  |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.conformance.specs import Outcome, State

#: Characters of a failure's cause that are kept.
LONGEST_CAUSE = 400


class ResultsUnusable(Exception):
    """The file of earlier results is not one."""


class Side(StrEnum):
    """See the table above."""

    BOTH = "both"
    KUBELET_ONLY = "kubelet_only"
    VKNODE_ONLY = "vknode_only"
    NEITHER = "neither"


@dataclass(frozen=True)
class Result:
    """What one target's runs came to. `minutes` is the mean of the runs."""

    outcomes: Mapping[str, Outcome]
    runs: int = 1
    minutes: float = 0.0

    def passed(self) -> set[str]:
        """The names of the specs that passed in every run."""
        return {name for name, one in self.outcomes.items() if one.state is State.PASSED}


@dataclass(frozen=True)
class Results:
    """All that is known: a result for each target that has been run, by its name."""

    kubernetes: str
    targets: Mapping[str, Result] = field(default_factory=dict)

    def having(self, target: str, result: Result) -> Results:
        """These results with one target's replaced."""
        return Results(self.kubernetes, {**self.targets, target: result})

    def adding(self, target: str, part: Result) -> Results:
        """These results with those of a part of the specs put over one target's. What passed in
        all runs did so in as many as the fewer."""
        before = self.targets.get(target)
        if before is None:
            return self.having(target, part)
        outcomes = {**before.outcomes, **part.outcomes}
        return self.having(
            target,
            Result(outcomes, min(before.runs, part.runs), before.minutes + part.minutes),
        )


def side(kubelet: Outcome | None, vknode: Outcome | None) -> Side:
    """Which of the table's rows a spec belongs to; None is a spec that was not run."""
    on_kubelet = kubelet is not None and kubelet.state is State.PASSED
    on_vknode = vknode is not None and vknode.state is State.PASSED
    if on_kubelet:
        return Side.BOTH if on_vknode else Side.KUBELET_ONLY
    return Side.VKNODE_ONLY if on_vknode else Side.NEITHER


def compare(kubelet: Result, vknode: Result) -> dict[str, Side]:
    """Every spec that either target was given, by name in order, and where it belongs."""
    return {
        name: side(kubelet.outcomes.get(name), vknode.outcomes.get(name))
        for name in sorted({*kubelet.outcomes, *vknode.outcomes})
    }


def cause(message: str) -> str:
    """A failure's message in one line: without the objects that the framework dumps into it,
    which are in braces, or indented below their type and address."""
    kept: list[str] = []
    depth = 0
    for piece in re.split(r"([{}]|\n)", _without_blocks(message)):
        if piece == "{":
            depth += 1
        elif piece == "}":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append("; " if piece == "\n" else piece)
    text = re.sub(r"<[^<>|]*\| 0x[0-9a-f]+>:?", "", " ".join("".join(kept).split()))
    text = re.sub(r"[\s\[\]:,]*;[\s\[\]:;]*", "; ", text).strip(" ;:[]")
    # Times, and names that the framework makes up, differ from run to run.
    text = re.sub(r"\b(\d+)\.\d+s\b", r"\1s", text)
    text = re.sub(r"\b([a-z][a-z-]*)-[0-9a-f]{8}-[0-9a-f-]{27}\b", r"\1-…", text)
    return text if len(text) <= LONGEST_CAUSE else text[: LONGEST_CAUSE - 1] + "…"


def _without_blocks(message: str) -> str:
    """The message without the lines that are indented more than the `<TYPE | 0xADDRESS>:`
    before them."""
    lines: list[str] = []
    dumped: int | None = None
    for line in message.splitlines():
        indent = len(line) - len(line.lstrip())
        if dumped is not None and (not line.strip() or indent > dumped):
            continue
        dumped = indent if re.search(r"\| 0x[0-9a-f]+>:\s*$", line) else None
        lines.append(line)
    return "\n".join(lines)


def load(path: Path, kubernetes: str) -> Results:
    """Earlier results of this version of Kubernetes; none if there are none, or if they are of
    another version. Raises ResultsUnusable for a file that is something else."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        if raw["kubernetes"] != kubernetes:
            return Results(kubernetes)
        return Results(kubernetes, {name: _result(one) for name, one in raw["targets"].items()})
    except FileNotFoundError:
        return Results(kubernetes)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ResultsUnusable(f"{path} holds no results: {problem!r}; delete it") from problem


def _result(raw: dict[str, Any]) -> Result:
    outcomes = {
        name: Outcome(name, State(one["state"]), float(one["seconds"]), one.get("cause", ""))
        for name, one in raw["specs"].items()
    }
    return Result(outcomes, int(raw["runs"]), float(raw["minutes"]))


def dump(results: Results) -> str:
    """The results as JSON, the same text for the same results."""
    targets = {
        name: {
            "runs": result.runs,
            "minutes": round(result.minutes, 1),
            "specs": {spec: _spec(one) for spec, one in sorted(result.outcomes.items())},
        }
        for name, result in sorted(results.targets.items())
    }
    document = {"kubernetes": results.kubernetes, "targets": targets}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _spec(outcome: Outcome) -> dict[str, Any]:
    raw: dict[str, Any] = {"state": outcome.state.value, "seconds": round(outcome.seconds)}
    if outcome.state is not State.PASSED:
        raw["cause"] = cause(outcome.message)
    return raw
