"""The specs that CI runs: all that pass on both targets and fit into some minutes.

A committed file of names, made from the last whole run, so that a spec which once passed
and is quick cannot fail unnoticed.
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance.results import Results, Side, compare
from tests.conformance.targets import KUBELET, VKNODE

FILE = Path(__file__).with_name("quick.txt")
#: Seconds that all chosen specs may take together if they ran one after the other. As many
#: at a time as the command runs, and with the cluster's start, they take about 10 minutes.
BUDGET = 4500.0
#: Seconds above which one spec is not quick.
LONGEST = 150.0
_HEAD = "# Made by `python -m tests.conformance --update-quick`.\n"


def choose(results: Results) -> list[str]:
    """The quickest specs that pass on both targets, by name."""
    kubelet, vknode = results.targets.get(KUBELET), results.targets.get(VKNODE)
    if kubelet is None or vknode is None:
        return []
    passing = [name for name, side in compare(kubelet, vknode).items() if side is Side.BOTH]
    chosen: list[str] = []
    left = BUDGET
    for name in sorted(passing, key=lambda one: vknode.outcomes[one].seconds):
        seconds = vknode.outcomes[name].seconds
        if seconds > min(left, LONGEST):
            break
        left -= seconds
        chosen.append(name)
    return sorted(chosen)


def write(results: Results) -> None:
    """Write the list that these results make."""
    FILE.write_text(_HEAD + "".join(f"{name}\n" for name in choose(results)))


def read() -> list[str]:
    """The committed list. Raises FileNotFoundError if there is none."""
    return [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
