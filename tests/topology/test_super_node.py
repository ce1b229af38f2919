"""The reason to exist: the same pool as many nodes and as one super node.

Sandboxes are simulated; scheduler, controllers and API are real. The pool has the
same total capacity in both shapes. README.md shows the table; this test keeps it true.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.worlds import sim_world
from tests.topology.scenarios import SCENARIOS, World

pytestmark = pytest.mark.cluster

README = Path(__file__).resolve().parents[2] / "README.md"
START, END = "<!-- super-node table -->\n", "<!-- /super-node table -->"


def judge(world: World) -> dict[str, bool]:
    found = {}
    for name, scenario in SCENARIOS.items():
        found[name] = scenario(world)
        world.kube.out(
            "delete", "deployments,daemonsets,poddisruptionbudgets", "--all",
            "--cascade=foreground", "--timeout=120s", timeout=150,
        )  # fmt: skip
    return found


def table(many: dict[str, bool], single: dict[str, bool]) -> str:
    def word(works: bool) -> str:
        return "works" if works else "**fails**"

    rows = "".join(f"| {name} | {word(single[name])} | {word(many[name])} |\n" for name in many)
    return "| | one super node | vknode: a node per cell |\n|---|---|---|\n" + rows


@pytest.mark.timeout(1200)
def test_many_nodes_work_where_one_super_node_fails() -> None:
    with sim_world(zones=3, cells_per_zone=2) as world:
        many = judge(world)
    with sim_world(zones=1, cells_per_zone=1) as world:
        single = judge(world)
    assert all(many.values()), many
    assert single["a Deployment runs"], "the super node does not even run Pods: a bad comparison"
    made = table(many, single)
    shown = README.read_text().split(START, 1)[1].split(END, 1)[0]
    assert shown == made, f"README.md's table is not what was observed; put this there:\n{made}"
