"""One fault serves all scenarios of a group, and none waits for one that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.scenarios.stage import Act, Fault, Faults


class Scene:
    """A group of scenarios with a lever that is written down."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.faults = Faults({"agent": (self.say("killed"), self.say("back"))})

    def say(self, text: str) -> Act:
        async def act() -> None:
            self.said.append(text)

        return act

    def fault(self, name: str, before: Act | None = None, meanwhile: Act | None = None) -> Fault:
        return Fault(
            "agent",
            0.01,
            before or self.say(f"{name} before"),
            meanwhile or self.say(f"{name} meanwhile"),
        )


def fails(problem: Callable[[], Exception]) -> Act:
    async def act() -> None:
        raise problem()

    return act


async def test_all_have_one_fault_together() -> None:
    scene = Scene()
    for name in "ab":
        scene.faults.expect(name, 1)
    await asyncio.gather(*(scene.faults.meet(name, scene.fault(name)) for name in "ab"))
    assert sorted(scene.said[:2]) == ["a before", "b before"]
    assert scene.said[2] == "killed"
    assert sorted(scene.said[3:5]) == ["a meanwhile", "b meanwhile"]
    assert scene.said[5:] == ["back"]


async def test_a_second_fault_is_had_by_those_who_want_one() -> None:
    scene = Scene()
    scene.faults.expect("once", 1)
    scene.faults.expect("twice", 2)

    async def twice() -> None:
        await scene.faults.meet("twice", scene.fault("twice"))
        await scene.faults.meet("twice", scene.fault("twice"))

    await asyncio.gather(twice(), scene.faults.meet("once", scene.fault("once")))
    assert scene.said.count("killed") == scene.said.count("back") == 2


async def test_nobody_waits_for_a_scenario_that_has_failed() -> None:
    scene = Scene()
    for name in "abc":
        scene.faults.expect(name, 1)

    async def failing() -> None:
        with pytest.raises(AssertionError, match="not ready"):
            await scene.faults.meet(
                "b", scene.fault("b", before=fails(lambda: AssertionError("not ready")))
            )
        await scene.faults.leave("b")

    await asyncio.gather(
        scene.faults.meet("a", scene.fault("a")), failing(), scene.faults.leave("c")
    )
    assert scene.said == ["a before", "killed", "a meanwhile", "back"]


async def test_what_fails_while_the_part_is_away_does_not_leave_it_away() -> None:
    scene = Scene()
    scene.faults.expect("a", 1)
    with pytest.raises(AssertionError, match="too late"):
        await scene.faults.meet(
            "a", scene.fault("a", meanwhile=fails(lambda: AssertionError("too late")))
        )
    assert scene.said == ["a before", "killed", "back"]


async def test_a_fault_that_fails_is_told_to_all() -> None:
    scene = Scene()
    scene.faults = Faults({"agent": (fails(lambda: OSError("no such process")), scene.say("back"))})
    for name in "ab":
        scene.faults.expect(name, 1)
    answers = await asyncio.gather(
        *(scene.faults.meet(name, scene.fault(name)) for name in "ab"), return_exceptions=True
    )
    assert [str(one) for one in answers] == ["the fault itself failed: no such process"] * 2


async def test_a_target_without_the_part_says_so() -> None:
    with pytest.raises(RuntimeError, match="no agent that could be killed"):
        await Faults().meet("a", Scene().fault("a"))
