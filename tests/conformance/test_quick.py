"""Upstream's own tests of nodes, those of them that are quick, on vknode."""

from __future__ import annotations

import pytest

from tests.conformance import quick, results
from tests.conformance.__main__ import OUT, PROCESSES
from tests.conformance.programs import require_tools
from tests.conformance.runs import Session, Wanted
from tests.conformance.specs import State
from tests.conformance.suite import Selection, exactly
from tests.conformance.targets import PROGRAMS, VKNODE
from tests.support.fixtures import have
from vknode.devcluster.cluster import Refused, refuse_without_privileges
from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.progress import Progress

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


@pytest.mark.timeout(1800)
def test_quick_node_conformance_specs_pass() -> None:
    have(PROGRAMS[VKNODE])
    try:
        refuse_without_privileges()
        tools = require_tools()
    except (Refused, ProgramsMissing) as problem:
        pytest.skip(str(problem))
    names = quick.read()
    wanted = Wanted(
        targets=(VKNODE,),
        selection=Selection(exactly(names)),
        repeat=1,
        processes=PROCESSES,
        whole=False,
        out=OUT / "quick",
    )
    ended = Session(tools, Progress()).run(VKNODE, wanted).outcomes
    assert set(ended) == set(names), "the test binary knows every spec of the list"
    others = [one for one in ended.values() if one.state is not State.PASSED]
    told = "\n".join(f"{one.state}: {one.name}: {results.cause(one.message)}" for one in others)
    assert not others, f"{told}\nlogs and details: {wanted.out}"
