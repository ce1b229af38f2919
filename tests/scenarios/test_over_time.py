"""Back-off over hours, on a stepped clock: when a container is started again and what the status
says in between. The numbers are a kubelet's: the first restart at once, then 10 s doubling to
5 min, counted from the end of the last instance, and anew after one that lived for 10 min."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.engine.world import make_spec
from tests.scenarios.hours import Hours, crashes
from vknode.pool.engine import steps
from vknode.pool.v1 import spec_pb2, status_pb2

NEVER, ON_FAILURE = spec_pb2.RESTART_POLICY_NEVER, spec_pb2.RESTART_POLICY_ON_FAILURE
HOUR = 3600
ALWAYS_PULLED = make_spec(pull=spec_pb2.IMAGE_PULL_POLICY_ALWAYS)


def waits(began: list[int], lived: int) -> list[int]:
    """Seconds between the end of each instance and the start of the next."""
    return [after - before - lived for before, after in pairwise(began)]


def test_an_hour_of_a_crash_loop() -> None:
    hours = Hours({"c0": crashes(2)})
    hours.until(HOUR)
    pauses = waits(hours.began["c0"], 2)
    assert pauses[:7] == [0, 10, 20, 40, 80, 160, 300]
    assert set(pauses[6:]) == {300}
    assert len(hours.began["c0"]) == 17
    main = hours.world.main()
    assert main.restart_count == 16
    assert main.last_termination.terminated.exit_code == 1


def test_what_the_status_says_while_it_waits() -> None:
    hours = Hours({"c0": crashes(2)})
    told = {}
    for second in (1, 3, 5, 13, 15, 17, 37, 39, 79, 81, 161, 163, 323, 325, 625, 700):
        hours.until(second)
        waiting = hours.told("c0").waiting
        told[second] = waiting.message.partition(" restarting")[0]
        assert waiting.reason == ("CrashLoopBackOff" if told[second] else "")
    running = ""
    assert told == {
        1: running,
        3: running,  # the first restart was at once
        5: "back-off 10s",
        13: "back-off 10s",
        15: running,
        17: "back-off 20s",
        37: running,
        39: "back-off 40s",
        79: running,
        81: "back-off 1m20s",
        161: running,
        163: "back-off 2m40s",
        323: running,
        325: "back-off 5m0s",
        625: running,
        700: "back-off 5m0s",
    }


@pytest.mark.parametrize("code", [0, 1])
def test_with_policy_always_a_success_is_a_crash_like_any_other(code: int) -> None:
    hours = Hours({"c0": crashes(1, code)})
    hours.until(700)
    assert waits(hours.began["c0"], 1)[:6] == [0, 10, 20, 40, 80, 160]


def test_nine_minutes_of_life_are_not_enough_to_begin_anew() -> None:
    hours = Hours({"c0": crashes(9 * 60)})
    hours.until(5 * HOUR)
    assert waits(hours.began["c0"], 540)[:8] == [0, 10, 20, 40, 80, 160, 300, 300]


def test_more_than_ten_minutes_of_life_are() -> None:
    hours = Hours({"c0": crashes(10 * 60 + 1)})
    hours.until(5 * HOUR)
    assert set(waits(hours.began["c0"], 601)) == {0}


def test_one_long_life_ends_a_crash_loop_and_the_next_crash_begins_one() -> None:
    hours = Hours({"c0": lambda number: (601 if number == 7 else 1, 1)})
    hours.until(3 * HOUR)
    began = hours.began["c0"]
    assert waits(began[:8], 1) == [0, 10, 20, 40, 80, 160, 300]
    assert began[8] - began[7] == 601
    assert waits(began[8:13], 1) == [10, 20, 40, 80]


def test_each_container_has_a_back_off_of_its_own() -> None:
    hours = Hours({"c0": crashes(1), "c1": crashes(100)}, make_spec(mains=3))
    hours.until(1000)
    assert waits(hours.began["c0"], 1)[:6] == [0, 10, 20, 40, 80, 160]
    assert waits(hours.began["c1"], 100)[:4] == [0, 10, 20, 40]
    assert hours.world.main(2).restart_count == 0


def test_an_init_container_backs_off_and_the_main_one_then_begins_afresh() -> None:
    spec = make_spec(inits=1, policy=ON_FAILURE)
    hours = Hours({"i0": lambda number: (1, 0 if number == 5 else 4), "c0": crashes(1)}, spec)
    hours.until(1000)
    assert waits(hours.began["i0"], 1) == [0, 10, 20, 40, 80]
    first = hours.began["c0"][0]
    assert first == hours.began["i0"][5] + 1
    assert waits(hours.began["c0"], 1)[:3] == [0, 10, 20]


def test_a_sidecar_backs_off_beside_a_main_container_that_runs_on() -> None:
    hours = Hours({"s0": crashes(1)}, make_spec(sidecars=1, policy=NEVER))
    hours.until(700)
    assert waits(hours.began["s0"], 1)[:6] == [0, 10, 20, 40, 80, 160]
    assert hours.reason("s0") == "CrashLoopBackOff"
    assert hours.told("c0").HasField("running")


def test_a_pool_that_dies_amid_a_long_wait_does_not_shorten_it() -> None:
    hours = Hours({"c0": crashes(1)})
    hours.until(400)
    before = list(hours.began["c0"])
    ended = before[-1] + 1
    hours.restart_pool()
    assert hours.reason("c0") == "CrashLoopBackOff"
    hours.until(ended + 290)
    assert hours.began["c0"] == before
    hours.until(ended + 310)
    assert len(hours.began["c0"]) == len(before) + 1
    assert hours.world.main().restart_count == len(before)


def test_a_pod_that_waits_for_five_minutes_is_deleted_at_once() -> None:
    hours = Hours({"c0": crashes(1)})
    hours.until(700)
    assert hours.told("c0").waiting.message.startswith("back-off 5m0s ")
    hours.world.feed(steps.Delete())
    hours.until(702)
    assert hours.world.machine.gone


def test_the_active_deadline_does_not_wait_for_a_back_off() -> None:
    hours = Hours({"c0": crashes(1)}, make_spec(deadline=500))
    hours.until(505)
    assert hours.world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert hours.world.status().reason == "DeadlineExceeded"
    hours.until(2 * HOUR)
    assert max(hours.began["c0"]) < 500


def test_an_image_that_cannot_be_had_for_an_hour() -> None:
    hours = Hours({}, ALWAYS_PULLED, broken="out of order")
    hours.until(HOUR)
    assert [b - a for a, b in pairwise(hours.pulls)][:7] == [10, 20, 40, 80, 160, 300, 300]
    assert hours.reason("c0") == "ImagePullBackOff"
    assert hours.told("c0").waiting.message == (
        'Back-off pulling image "app:0": ErrImagePull: out of order'
    )
    assert hours.world.main().restart_count == 0
    assert hours.world.said().count("Pulling") == len(hours.pulls)


def test_a_registry_that_works_again_is_found_at_the_next_try() -> None:
    hours = Hours({}, ALWAYS_PULLED, broken="out of order")
    hours.until(400)
    tried = hours.pulls[-1]
    hours.registry()
    hours.until(tried + 295)
    assert not hours.world.running("c0")
    hours.until(tried + 305)
    assert hours.world.running("c0")
    assert hours.world.main().restart_count == 0
    assert hours.world.said()[-3:] == ["Pulled", "Created", "Started"]


def test_a_container_with_an_image_backs_off_apart_from_one_without() -> None:
    """A registry that fails later does not stop what runs, only what must start again."""
    spec = make_spec(mains=2, pull=spec_pb2.IMAGE_PULL_POLICY_ALWAYS)
    hours = Hours({"c0": lambda number: (100 if number == 0 else 10_000, 1)}, spec)
    hours.until(50)
    hours.registry(broken="out of order")
    hours.until(150)
    assert hours.reason("c0") == "ImagePullBackOff"
    assert hours.told("c1").HasField("running")
    hours.registry()
    hours.until(500)
    assert hours.told("c0").HasField("running")
    assert [c.restart_count for c in hours.world.status().containers] == [1, 0]
