"""What ginkgo's JSON report says of each spec. Pure.

The report's shape is that of `types.Report` in github.com/onsi/ginkgo/v2/types: a list of
suites with their `SpecReports`; durations are in nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: Characters of a failure's message that are kept. Long, for the reason often comes after a
#: whole Pod in JSON.
LONGEST_MESSAGE = 200_000


class ReportUnusable(Exception):
    """The report is not one of ginkgo's, or of a suite that did not run."""


class State(StrEnum):
    """How a spec ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # by itself, when it ran: it found the cluster not fit for it


@dataclass(frozen=True)
class Outcome:
    """One spec's end. `seconds` it took; `message` is why it failed or was skipped."""

    name: str
    state: State
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Spec:
    """One spec as the test binary announces it, with its labels."""

    name: str
    labels: frozenset[str]


def parse_outcomes(report: str) -> dict[str, Outcome]:
    """The outcomes of the specs that were run, by name.

    Raises ReportUnusable, also when the suite's own preparation failed: then no spec has
    been run, and none may count as skipped."""
    found: dict[str, Outcome] = {}
    for raw in _spec_reports(report):
        state = str(raw["State"])
        if raw["LeafNodeType"] != "It":
            if "BeforeSuite" in raw["LeafNodeType"] and state not in ("passed", "skipped"):
                raise ReportUnusable(f"the suite did not start: {_message(raw)}")
            continue
        message = _message(raw)
        if state in ("skipped", "pending"):
            if not message or raw.get("RunTime", 0) == 0:
                continue  # not chosen
            kind = State.SKIPPED
        elif state == "passed":
            kind = State.PASSED
        else:  # failed, panicked, timedout, interrupted, aborted
            kind = State.FAILED
            message = message or state
        outcome = Outcome(_name(raw), kind, round(raw.get("RunTime", 0) / 1e9, 1), message)
        before = found.get(outcome.name)
        # Two specs may have one name: it passes if both do.
        if before is None or before.state is State.PASSED:
            found[outcome.name] = outcome
    return found


def parse_specs(report: str) -> list[Spec]:
    """All specs of a report (of a dry run, say), in its order. Raises ReportUnusable."""
    return [
        Spec(_name(raw), frozenset(_labels(raw)))
        for raw in _spec_reports(report)
        if raw["LeafNodeType"] == "It"
    ]


def together(runs: Iterable[dict[str, Outcome]]) -> dict[str, Outcome]:
    """Several runs as one: a spec passed if it did so every time that it was run, and the
    first other end counts."""
    merged: dict[str, Outcome] = {}
    for number, run in enumerate(runs, 1):
        for name, outcome in run.items():
            before = merged.get(name)
            if before is None:
                merged[name] = outcome
            elif before.state is State.PASSED and outcome.state is not State.PASSED:
                text = f"in run {number}, after it had passed: {outcome.message}"
                merged[name] = Outcome(name, outcome.state, outcome.seconds, text)
    return merged


def _spec_reports(report: str) -> list[dict[str, Any]]:
    try:
        suites = json.loads(report)
        found: list[dict[str, Any]] = []
        for suite in suites if isinstance(suites, list) else [suites]:
            found += suite["SpecReports"] or ()
        for raw in found:
            if not {"State", "LeafNodeType", "LeafNodeText"} <= raw.keys():
                raise KeyError("a spec without its state, kind or text")
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ReportUnusable(f"not a JSON report of ginkgo's: {problem!r}") from problem
    return found


def _name(raw: dict[str, Any]) -> str:
    return " ".join([*(raw.get("ContainerHierarchyTexts") or ()), raw["LeafNodeText"]]).strip()


def _labels(raw: dict[str, Any]) -> list[str]:
    outer = [label for level in raw.get("ContainerHierarchyLabels") or () for label in level or ()]
    return [*outer, *(raw.get("LeafNodeLabels") or ())]


def _message(raw: dict[str, Any]) -> str:
    failure = raw.get("Failure") or {}
    text = str(failure.get("Message") or failure.get("ForwardedPanic") or "")
    return text.strip()[:LONGEST_MESSAGE]
