"""What the real kubelet made of the scenarios: kubelet-VERSION.json beside this file.

Written by `python -m tests.scenarios --target kubelet`, never by hand. An entry belongs to one
content of the scenario's file: whoever changes an expectation must show it to the kubelet again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.scenarios.batch import Outcome
from tests.scenarios.format import FOLDER, Scenario, load

VERSION = "1.37.2"
FILE = FOLDER / f"kubelet-{VERSION}.json"


def read(file: Path = FILE) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"scenarios": {}}


def write(outcomes: Sequence[Outcome], node: Mapping[str, str], file: Path = FILE) -> None:
    """Take the outcomes into the record; entries of scenarios that are no more go."""
    kept = read(file)["scenarios"]
    for one in outcomes:
        kept[one.scenario.name] = {
            "result": "failed" if one.problem else "passed",
            "seconds": round(one.seconds, 1),
            "file": one.scenario.digest,
        }
    entries: dict[str, Any] = {}
    for scenario in load():
        if not scenario.runs_on("kubelet"):
            entries[scenario.name] = {"result": "not asked", "why": scenario.why}
        elif scenario.name in kept:
            entries[scenario.name] = kept[scenario.name]
    content = {
        "kubelet": node["kubeletVersion"],
        "runtime": node["containerRuntimeVersion"],
        "kernel": node["kernelVersion"],
        "scenarios": entries,
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def gaps(scenarios: Sequence[Scenario], record: Mapping[str, Any]) -> Iterator[str]:
    """Scenarios that did not pass on the real kubelet as they are now."""
    for scenario in scenarios:
        if not scenario.runs_on("kubelet"):
            continue
        entry = record["scenarios"].get(scenario.name)
        if entry is None:
            yield f"{scenario.name} was never played on the kubelet"
        elif entry.get("result") != "passed":
            yield f"{scenario.name} did not pass on the kubelet"
        elif entry["file"] != scenario.digest:
            yield f"{scenario.name} has changed since it passed on the kubelet"
