"""Every scenario on vknode, with real containers: all side by side, each with its own result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import cast

import pytest

from tests.scenarios.batch import Outcome, play_all
from tests.scenarios.format import Scenario, load
from tests.scenarios.targets import vknode
from tests.support.fixtures import Running

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.containerd,
    pytest.mark.timeout(2400),  # the first result may be the last to come
]

SCENARIOS = [one for one in load() if one.runs_on("vknode")]


@pytest.fixture(scope="session")
def outcomes(
    cri: Running, request: pytest.FixtureRequest
) -> Iterator[Mapping[str, Future[Outcome]]]:
    """The outcomes to come of all scenarios that this session wants; they begin now."""
    wanted = [
        cast(Scenario, item.callspec.params["scenario"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_scenario
    ]
    coming: dict[str, Future[Outcome]] = {one.name: Future() for one in wanted}
    run = cri.thread.submit(
        play_all(
            vknode(cri), wanted, lambda outcome: coming[outcome.scenario.name].set_result(outcome)
        )
    )

    def ended(future: Future[None]) -> None:
        problem = None if future.cancelled() else future.exception()
        for one in coming.values():
            if not one.done():
                one.set_exception(problem or RuntimeError("the run was ended"))

    run.add_done_callback(ended)
    yield coming
    run.cancel()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_scenario(scenario: Scenario, outcomes: Mapping[str, Future[Outcome]]) -> None:
    problem = outcomes[scenario.name].result().problem
    if problem:
        pytest.fail(problem, pytrace=False)
