"""`docs/conformance.md`, made of the results. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.conformance.results import Result, Results, Side, compare
from tests.conformance.specs import Outcome, State
from tests.conformance.targets import KUBELET, VKNODE

_HEAD = """\
# Upstream's node conformance tests

<!-- Made by `make conformance`; edit tests/conformance/reasons.yaml instead. -->

Upstream's own end-to-end tests of Kubernetes {version}, those of `[sig-node]` that are
`[NodeConformance]`, those of in-place resize and those of kubectl (`[sig-cli]`), run against two
clusters on one machine: a real kubelet, and vknode. Both have the same control plane, containerd
and images; only the node agent differs. What fails on the kubelet too is a limit of the machine
or of the images, which are made locally from upstream's programs and Debian's
(`tests/conformance/images.py`).

`make conformance` runs all of it, `python -m tests.conformance --help` tells how to run parts.
"""
#: Labels in a spec's name that say nothing to a reader of the table.
_LABEL = re.compile(
    r" ?\[(?:sig-node|sig-cli|NodeConformance|Conformance|Beta|Slow|Serial|LinuxOnly|"
    r"(?:FeatureGate|Feature|Environment|MinimumKubeletVersion|KubeletMinVersion):[^\]]*)\]"
)


class ReasonsUnusable(Exception):
    """The file of reasons is wrong; the text says where."""


@dataclass(frozen=True)
class Reason:
    """Why the specs whose names match differ, or fail on both."""

    specs: re.Pattern[str]
    text: str


def read_reasons(path: Path) -> list[Reason]:
    """The committed reasons, in order; the first that matches counts.

    Raises ReasonsUnusable naming the entry that is wrong."""
    entries = yaml.safe_load(path.read_text()) or []
    if not isinstance(entries, list):
        raise ReasonsUnusable(f"{path}: must be a list")
    found: list[Reason] = []
    for number, entry in enumerate(entries):
        where = f"{path}[{number}]"
        if not isinstance(entry, dict) or set(entry) != {"specs", "reason"}:
            raise ReasonsUnusable(f"{where}: must have `specs` and `reason`, nothing else")
        try:
            pattern = re.compile(str(entry["specs"]))
        except re.error as problem:
            raise ReasonsUnusable(f"{where}.specs: {problem}") from problem
        found.append(Reason(pattern, " ".join(str(entry["reason"]).split())))
    return found


def reason_for(name: str, reasons: Iterable[Reason]) -> str:
    """The first reason that fits the spec; empty if none is known."""
    return next((one.text for one in reasons if one.specs.search(name)), "")


def short(name: str) -> str:
    """A spec's name without its labels."""
    return " ".join(_LABEL.sub("", name).split())


def render(results: Results, reasons: Sequence[Reason]) -> str:
    """The whole page."""
    nothing = Result({}, runs=0)
    kubelet = results.targets.get(KUBELET, nothing)
    vknode = results.targets.get(VKNODE, nothing)
    sides = compare(kubelet, vknode)
    parts = [_HEAD.format(version=results.kubernetes), _summary(kubelet, vknode, sides)]
    parts += [
        _section(title, wanted, sides, kubelet, vknode, reasons)
        for title, wanted in (
            ("Passes on the kubelet only", Side.KUBELET_ONLY),
            ("Passes on vknode only", Side.VKNODE_ONLY),
            ("Passes on neither", Side.NEITHER),
        )
    ]
    parts.append(_all(sides, kubelet, vknode))
    return "\n".join(filter(None, parts))


def _summary(kubelet: Result, vknode: Result, sides: Mapping[str, Side]) -> str:
    rows = ["| | kubelet | vknode |", "|---|---|---|"]
    counts = [
        Counter(one.state for one in target.outcomes.values()) for target in (kubelet, vknode)
    ]
    rows += [f"| {state.value} | {counts[0][state]} | {counts[1][state]} |" for state in State]
    rows.append(f"| specs | {len(kubelet.outcomes)} | {len(vknode.outcomes)} |")
    rows.append(f"| runs, in all of which it passed | {kubelet.runs} | {vknode.runs} |")
    rows.append(f"| minutes | {kubelet.minutes:.0f} | {vknode.minutes:.0f} |")
    only = Counter(sides.values())
    told = (
        f"\nOf {len(sides)} specs {only[Side.BOTH]} pass on both, {only[Side.KUBELET_ONLY]} on the "
        f"kubelet only, {only[Side.VKNODE_ONLY]} on vknode only, {only[Side.NEITHER]} on neither.\n"
    )
    return "\n".join(rows) + "\n" + told


def _section(
    title: str,
    wanted: Side,
    sides: Mapping[str, Side],
    kubelet: Result,
    vknode: Result,
    reasons: Sequence[Reason],
) -> str:
    names = [name for name, one in sides.items() if one is wanted]
    if not names:
        return ""
    rows = [f"## {title}", "", "| spec | kubelet | vknode | reason |", "|---|---|---|---|"]
    for name in names:
        ends = (kubelet.outcomes.get(name), vknode.outcomes.get(name))
        said = next((end.message for end in ends if end is not None and end.message), "")
        reason = reason_for(name, reasons) or (f"not known; it says: {said}" if said else "")
        cells = (short(name), *map(_word, ends), reason)
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(rows) + "\n"


def _all(sides: Mapping[str, Side], kubelet: Result, vknode: Result) -> str:
    rows = ["## Every spec", "", "| spec | kubelet | vknode |", "|---|---|---|"]
    for name in sides:
        ends = (kubelet.outcomes.get(name), vknode.outcomes.get(name))
        rows.append("| " + " | ".join(map(_cell, (short(name), *map(_word, ends)))) + " |")
    return "\n".join(rows) + "\n"


def _word(outcome: Outcome | None) -> str:
    return "not run" if outcome is None else outcome.state.value


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or start markup."""
    return re.sub(r"([|<>*_`])", r"\\\1", " ".join(text.split()))
