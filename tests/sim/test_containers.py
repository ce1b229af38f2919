"""How simulated containers start, end and are seen again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.sim.support import QUICK, make_spec, next_event, next_exit, read_logs, simulation, start
from tests.support.stepped import stepped
from vknode.pool.runtimes.base import (
    EventsLost,
    Failure,
    HealthChanged,
    ObservedState,
    RuntimeAway,
)
from vknode.pool.runtimes.sim.behaviour import Script
from vknode.pool.runtimes.sim.config import Latency, Outage, SimConfig
from vknode.pool.runtimes.sim.journal import Journal
from vknode.pool.v1 import spec_pb2


@stepped
async def test_exits_with_the_code_of_its_command() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(["sh", "-c", "echo hi; exit 3"]))
        event = await next_exit(runtime)
        assert (event.ref, event.exit.exit_code, event.exit.reason) == (ref, 3, "Error")
        assert event.exit.finished_at >= event.exit.started_at > 0


@stepped
async def test_annotations_say_when_and_how_it_ends() -> None:
    async with simulation() as runtime:
        spec = make_spec(exit_after="50ms", exit_code="137", exit_reason="OOMKilled")
        await start(runtime, spec)
        event = await next_exit(runtime)
        assert (event.exit.exit_code, event.exit.reason) == (137, "OOMKilled")
        assert event.exit.finished_at - event.exit.started_at == 50_000_000


@stepped
async def test_an_annotation_for_one_container_wins() -> None:
    async with simulation() as runtime:
        spec = make_spec(exit_after="1h", exit_code="1")
        spec.annotations["sim.vknode.dev/exit-after.main"] = "10ms"
        await start(runtime, spec)
        assert (await next_exit(runtime)).exit.exit_code == 1


@stepped
async def test_sigterm_ends_it_and_sigkill_does_where_it_is_ignored() -> None:
    async with simulation() as runtime:
        _, willing = await start(runtime, make_spec(uid="a"))
        _, deaf = await start(runtime, make_spec(uid="b", ignore_sigterm="true"))
        _, trapping = await start(
            runtime, make_spec(["sh", "-c", "trap 'exit 9' TERM; sleep infinity"], uid="c")
        )
        now = asyncio.get_running_loop().time
        begin = now()
        await runtime.stop_container(willing, 30)
        assert now() - begin < 5
        assert (await next_exit(runtime)).exit.exit_code == 143
        begin = now()
        await runtime.stop_container(deaf, 0.3)
        assert now() - begin >= 0.29
        event = await next_exit(runtime)
        assert (event.exit.exit_code, event.exit.signal) == (137, 9)
        await runtime.stop_container(trapping, 30)
        assert (await next_exit(runtime)).exit.exit_code == 9
        await runtime.stop_container(trapping, 30)  # again: no error, no second event


@stepped
async def test_a_second_stop_shortens_the_grace() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(ignore_sigterm="true"))
        slow = asyncio.create_task(runtime.stop_container(ref, 600))
        await runtime.stop_container(ref, 0)
        await asyncio.wait_for(slow, 30)


async def test_addresses_are_unique_and_given_back() -> None:
    config = SimConfig(latency=QUICK, subnet="10.9.0.0/28")  # 13 addresses
    async with simulation(config) as runtime:
        boxes = [await runtime.run_sandbox(make_spec(uid=f"u{n}"), 0) for n in range(13)]
        assert len({box.ips for box in boxes}) == 13
        with pytest.raises(Failure, match="no address is free"):
            await runtime.run_sandbox(make_spec(uid="one-more"), 0)
        await runtime.remove_sandbox("u4")
        assert (await runtime.run_sandbox(make_spec(uid="one-more"), 0)).ips == boxes[4].ips


async def test_a_stopped_sandbox_keeps_its_logs_and_frees_its_address() -> None:
    config = SimConfig(latency=QUICK, subnet="10.9.0.0/28")
    async with simulation(config) as runtime:
        first, ref = await start(runtime, make_spec(["sh", "-c", "echo kept"]))
        await next_exit(runtime)
        await runtime.stop_sandbox("uid-1")
        await runtime.stop_sandbox("uid-1")
        assert await read_logs(runtime, ref) == b"kept\n"
        (found,) = await runtime.inventory()
        assert not found.ready and found.containers[0].exit is not None
        boxes = [await runtime.run_sandbox(make_spec(uid=f"u{n}"), 0) for n in range(13)]
        assert first.ips in {box.ips for box in boxes}
        await runtime.remove_sandbox("uid-1")  # must not give the address back once more
        with pytest.raises(Failure, match="no address is free"):
            await runtime.run_sandbox(make_spec(uid="one-more"), 0)


async def test_a_replayed_call_makes_nothing_new() -> None:
    async with simulation() as runtime:
        spec = make_spec()
        sandbox, ref = await start(runtime, spec)
        assert await start(runtime, spec) == (sandbox, ref)
        await runtime.remove_sandbox("uid-1")
        await runtime.remove_sandbox("uid-1")
        assert await runtime.inventory() == []


async def test_configured_failures_happen_as_often_as_asked() -> None:
    config = SimConfig(seed=3, latency=QUICK, failures={"sandbox": 0.3})
    failed = 0
    async with simulation(config) as runtime:
        for number in range(400):
            try:
                await runtime.run_sandbox(make_spec(uid=f"u{number}"), 0)
            except Failure as failure:
                assert failure.reason == "FailedCreatePodSandBox" and failure.retryable
                failed += 1
    assert 90 <= failed <= 150


async def test_latency_follows_its_distribution_and_seed() -> None:
    import random

    def draws() -> list[float]:
        rng = random.Random(5)
        return sorted(Latency(0.1, 2.0).draw(rng) for _ in range(2001))

    once = draws()
    assert once == draws()
    assert 0.09 < once[1000] < 0.11  # the median
    within = sum(0.05 <= value <= 0.2 for value in once) / len(once)
    assert 0.64 < within < 0.73  # one standard deviation


async def test_start_errors_by_annotation_and_by_script() -> None:
    script = Script({"image": "*bad*"}, {"start-error": "no room"})
    async with simulation(SimConfig(latency=QUICK, scripts=(script,))) as runtime:
        spec = make_spec()
        spec.containers[0].image = "bad/image"
        with pytest.raises(Failure) as caught:
            await start(runtime, spec)
        assert (caught.value.reason, caught.value.message) == ("RunContainerError", "no room")
        with pytest.raises(Failure) as caught:
            await start(runtime, make_spec(uid="two", image_pull_error="gone"))
        assert caught.value.reason == "ErrImagePull"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("UPPER//case", "InvalidImageName"),
        ("broken.sim.vknode.dev/x", "ErrImagePull"),
    ],
)
async def test_images_that_cannot_be_had(image: str, reason: str) -> None:
    async with simulation() as runtime:
        with pytest.raises(Failure) as caught:
            await runtime.ensure_image(image, spec_pb2.IMAGE_PULL_POLICY_ALWAYS, [])
        assert caught.value.reason == reason
        with pytest.raises(Failure) as caught:
            await runtime.ensure_image("fine", spec_pb2.IMAGE_PULL_POLICY_NEVER, [])
        assert caught.value.reason == "ErrImageNeverPull"


async def test_wrong_annotations_are_named() -> None:
    async with simulation() as runtime:
        spec = make_spec(exit_after="soon", colour="red")
        spec.annotations["sim.vknode.dev/exit-code.other"] = "1"
        paths = [problem.path for problem in runtime.problems(spec)]
        assert 'annotations["sim.vknode.dev/exit-code.other"]' in paths
        assert 'annotations["sim.vknode.dev/exit-after"]' in paths or (
            'annotations["sim.vknode.dev/colour"]' in paths
        )
        assert runtime.problems(make_spec(exit_after="5s")) == []


@stepped
async def test_an_outage_is_told_and_hides_nothing() -> None:
    config = SimConfig(latency=QUICK, outages=(Outage(0.05, 0.2),))
    async with simulation(config) as runtime:
        await start(runtime, make_spec(exit_after="100ms"))
        event = await next_event(runtime)
        assert isinstance(event, HealthChanged) and not event.healthy and event.reason
        with pytest.raises(RuntimeAway):
            await runtime.inventory()
        event = await next_event(runtime)
        assert isinstance(event, HealthChanged) and event.healthy
        assert isinstance(await next_event(runtime), EventsLost)
        (sandbox,) = await runtime.inventory()
        assert sandbox.containers[0].state == ObservedState.EXITED


@stepped
async def test_a_restarted_pool_finds_everything_again(tmp_path: Path) -> None:
    path = tmp_path / "sim.journal"
    async with simulation(journal=Journal(path)) as runtime:
        kept, running = await start(runtime, make_spec(["sleep", "infinity"], uid="kept"))
        _, ended = await start(runtime, make_spec(["sh", "-c", "echo x; exit 4"], uid="ended"))
        await start(runtime, make_spec(uid="removed"))
        await runtime.remove_sandbox("removed")
        await start(runtime, make_spec(uid="ends-meanwhile", exit_after="300ms", exit_code="6"))
        while (await next_exit(runtime)).ref != ended:
            pass
    with path.open("a") as file:
        file.write('{"op":"sandbox","spec"')  # a kill in the middle of a write
    await asyncio.sleep(0.4)  # the simulated process ends while no pool runs
    async with simulation(journal=Journal(path)) as runtime:
        event = await next_exit(runtime)
        assert (event.ref.uid, event.exit.exit_code) == ("ends-meanwhile", 6)
        assert event.exit.finished_at - event.exit.started_at == 300_000_000
        found = {sandbox.uid: sandbox for sandbox in await runtime.inventory()}
        assert found.keys() == {"kept", "ended", "ends-meanwhile"}
        assert found["kept"].ips == kept.ips
        assert found["kept"].containers[0].ref == running
        assert found["kept"].containers[0].state == ObservedState.RUNNING
        exit = found["ended"].containers[0].exit
        assert exit is not None and exit.exit_code == 4
        assert await read_logs(runtime, ended) == b"x\n"
        fresh = await runtime.run_sandbox(make_spec(uid="fresh"), 0)
        assert fresh.ips != kept.ips
    assert path.stat().st_mode & 0o777 == 0o600


async def test_ten_thousand_sandboxes_rest_without_tasks() -> None:
    async with simulation() as runtime:
        tasks = len(asyncio.all_tasks())
        begin = time.process_time()
        for number in range(10_000):
            await start(runtime, make_spec(uid=f"u{number}", log_every="10s"))
        assert time.process_time() - begin < 20
        assert len(asyncio.all_tasks()) == tasks
        assert len(await runtime.inventory()) == 10_000
        assert len(await runtime.stats([])) == 10_000
