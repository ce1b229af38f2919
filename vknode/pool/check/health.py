"""Checks of what a pool does by itself for running containers: probes, hooks, sidecars,
restart rules, debug containers, resizes."""

from __future__ import annotations

import asyncio
import time

from vknode.pool.check.suite import (
    Bench,
    CheckFailed,
    check,
    describe,
    expect,
    expect_equal,
)
from vknode.pool.v1 import spec_pb2, status_pb2

SUCCEEDED = status_pb2.SANDBOX_STATE_SUCCEEDED
NEVER = spec_pb2.RESTART_POLICY_NEVER
ALWAYS = spec_pb2.RESTART_POLICY_ALWAYS
TURNS = ["sh", "-c", "trap 'exit 0' TERM; echo ready; while true; do sleep 0.1; done"]


def _probe(
    command: list[str], *, period: int = 1, failures: int = 1, grace: int | None = None
) -> spec_pb2.Probe:
    return spec_pb2.Probe(
        handler=spec_pb2.Handler(exec=spec_pb2.Handler.Exec(command=command)),
        timeout_seconds=10,
        period_seconds=period,
        success_threshold=1,
        failure_threshold=failures,
        termination_grace_period_seconds=grace,
    )


async def _event(bench: Bench, spec: spec_pb2.SandboxSpec, reason: str) -> status_pb2.SandboxEvent:
    try:
        return await bench.observer.wait_event(spec.uid, reason, bench.settings.timeout)
    except TimeoutError:
        raise CheckFailed(f"no event {reason!r}") from None


@check("a failed liveness probe is told and restarts its container")
async def liveness_restarts(bench: Bench) -> None:
    spec = bench.spec(TURNS)
    spec.containers[0].liveness_probe.CopyFrom(_probe(["false"], failures=2))
    await bench.create(spec)
    event = await _event(bench, spec, "Unhealthy")
    expect_equal(event.type, "Warning", "type of Unhealthy")
    expect("Liveness probe failed" in event.message, f"message is {event.message!r}")
    await bench.wait(spec, lambda s: s.containers[0].restart_count >= 1, "restarted")


@check("a container is ready when its readiness probe says so, and not before")
async def readiness_decides(bench: Bench) -> None:
    spec, good = bench.spec(TURNS), bench.spec(TURNS)
    spec.containers[0].readiness_probe.CopyFrom(_probe(["false"]))
    good.containers[0].readiness_probe.CopyFrom(_probe(["true"]))
    await asyncio.gather(bench.create(spec), bench.running(good))
    await _event(bench, spec, "Unhealthy")
    sandbox = bench.observer.latest[spec.uid]
    container = sandbox.containers[0]
    expect(container.state.HasField("running"), f"it should run: {describe(sandbox)}")
    expect(container.started and not container.ready, "it should be started and not ready")
    expect_equal(container.restart_count, 0, "restart_count")


@check("the other probes wait for the startup probe; a failed one restarts the container")
async def startup_comes_first(bench: Bench) -> None:
    spec = bench.spec(TURNS)
    spec.containers[0].startup_probe.CopyFrom(_probe(["false"], failures=3))
    spec.containers[0].liveness_probe.CopyFrom(_probe(["false"]))
    await bench.create(spec)
    event = await _event(bench, spec, "Unhealthy")
    expect("Startup probe failed" in event.message, f"message is {event.message!r}")
    sandbox = await bench.wait(spec, lambda s: s.containers[0].restart_count >= 1, "restarted")
    expect(not sandbox.containers[0].started, "`started` is set")


@check("a failed post-start hook kills its container; a good one lets it run")
async def post_start_hook(bench: Bench) -> None:
    good, bad = bench.spec(TURNS), bench.spec(TURNS)
    good.containers[0].post_start.exec.command.append("true")
    bad.containers[0].post_start.exec.command.append("false")
    await asyncio.gather(bench.running(good), bench.create(bad))
    await _event(bench, bad, "FailedPostStartHook")
    await bench.wait(
        bad,
        lambda s: s.containers[0].restart_count >= 1 or s.containers[0].state.HasField("waiting"),
        "killed",
    )


@check("a pre-stop hook comes before the stop signal, out of the same grace")
async def pre_stop_hook(bench: Bench) -> None:
    spec = bench.spec(TURNS, grace=90)
    spec.containers[0].pre_stop.sleep.seconds = 2
    await bench.running(spec)
    await bench.says(spec, "ready")
    begin = time.monotonic()
    await bench.client.delete(spec.uid)
    sandbox = await bench.wait(spec, lambda s: s.deleting, "deleting")
    expect(sandbox.containers[0].state.HasField("running"), f"at once: {describe(sandbox)}")
    await bench.gone(spec, 45)  # well before the grace is over
    took = time.monotonic() - begin
    expect(took >= 1.9, f"ended after {took:.1f} s, before its hook had slept 2 s")
    end = bench.observer.gone[spec.uid].containers[0].state.terminated
    expect_equal(end.exit_code, 0, "exit code after the stop signal")


@check("a sidecar starts before, stays, and does not keep a finished sandbox from ending")
async def sidecar(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "sleep 1"], policy=NEVER)
    helper = bench.container(spec, "helper", TURNS, init=True)
    helper.restart_policy = ALWAYS
    sandbox = await bench.finished(spec)
    expect_equal(sandbox.state, SUCCEEDED, "state")
    helped, main = sandbox.init_containers[0], sandbox.containers[0]
    expect(helped.state.HasField("terminated"), f"the sidecar still runs: {describe(sandbox)}")
    stamps = [
        helped.state.terminated.started_at,
        main.state.terminated.started_at,
        main.state.terminated.finished_at,
        helped.state.terminated.finished_at,
    ]
    times = [stamp.ToNanoseconds() for stamp in stamps]
    expect_equal(times, sorted(times), "sidecar around main container, by time")


@check("a rule restarts a container for its exit code only")
async def restart_rule(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "sleep 0.2; exit 42"], policy=NEVER)
    container = spec.containers[0]
    container.restart_policy = NEVER
    container.restart_rules.add(
        action=spec_pb2.RestartRule.ACTION_RESTART, exit_codes=[42], not_in=False
    )
    other = bench.spec(["sh", "-c", "exit 41"], policy=NEVER)
    other.containers[0].restart_policy = NEVER
    other.containers[0].restart_rules.add(
        action=spec_pb2.RestartRule.ACTION_RESTART, exit_codes=[42]
    )
    await bench.create(spec)
    await bench.wait(spec, lambda s: s.containers[0].restart_count >= 1, "restarted")
    sandbox = await bench.finished(other)
    expect_equal(sandbox.containers[0].restart_count, 0, "restart_count with another code")


@check("a rule can restart all containers")
async def restart_all_rule(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "sleep 0.5; exit 42"], policy=NEVER)
    bench.container(spec, "other", TURNS)
    spec.containers[0].restart_policy = NEVER
    spec.containers[0].restart_rules.add(
        action=spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS, exit_codes=[42]
    )
    await bench.create(spec)
    sandbox = await bench.wait(
        spec, lambda s: all(c.restart_count >= 1 for c in s.containers), "restarted as a whole"
    )
    expect_equal(len({c.container_id for c in sandbox.containers}), 2, "number of containers")


@check("an update adds a debug container, which is never restarted")
async def ephemeral_container(bench: Bench) -> None:
    spec = bench.spec(TURNS)
    await bench.running(spec)
    spec.generation = 2
    spec.ephemeral_containers.add(
        name="debug",
        image=bench.settings.image,
        image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
        command=["sh", "-c", "exit 6"],
    )
    await bench.client.update(spec)
    sandbox = await bench.wait(
        spec,
        lambda s: s.ephemeral_containers and s.ephemeral_containers[0].state.HasField("terminated"),
        "ended in its debug container",
    )
    expect_equal(sandbox.ephemeral_containers[0].state.terminated.exit_code, 6, "exit code")
    expect_equal(sandbox.ephemeral_containers[0].restart_count, 0, "restart_count")
    expect(sandbox.containers[0].ready, "the main container is not ready any more")


@check("a change of resources comes into force without a restart")
async def resize(bench: Bench) -> None:
    spec = bench.spec(TURNS)
    spec.containers[0].resources.requests["cpu"] = "10m"
    spec.containers[0].resources.limits["cpu"] = "100m"
    before = await bench.running(spec)
    spec.generation = 2
    spec.containers[0].resources.requests["cpu"] = "20m"
    spec.containers[0].resources.limits["cpu"] = "200m"
    await bench.client.update(spec)
    sandbox = await bench.wait(
        spec,
        lambda s: (
            s.observed_generation == 2
            and not s.HasField("resize")
            and s.containers[0].resources.limits["cpu"] == "200m"
        ),
        "resized",
    )
    container = sandbox.containers[0]
    expect_equal(container.allocated.requests["cpu"], "20m", "allocated cpu")
    expect_equal(container.container_id, before.containers[0].container_id, "container")


@check("a resize without room is pending, and everything stays as it is")
async def resize_pending(bench: Bench) -> None:
    spec = bench.spec(TURNS)
    spec.containers[0].resources.requests["cpu"] = "10m"
    await bench.running(spec)
    spec.generation = 2
    spec.containers[0].resources.requests["cpu"] = "1000000"
    await bench.client.update(spec)
    sandbox = await bench.wait(spec, lambda s: s.resize.pending_reason, "pending")
    expect(
        sandbox.resize.pending_reason in ("Deferred", "Infeasible"),
        f"pending_reason is {sandbox.resize.pending_reason!r}",
    )
    expect(sandbox.resize.pending_message, "pending_message is empty")
    expect_equal(sandbox.resize.pending_generation, 2, "pending_generation")
    expect_equal(sandbox.containers[0].allocated.requests["cpu"], "10m", "allocated cpu")
