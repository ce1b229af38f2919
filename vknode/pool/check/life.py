"""Checks of a sandbox's life: start, exit codes, restarts, init containers, deletion."""

from __future__ import annotations

import asyncio
import re
import time

from vknode.pool.check.suite import (
    OWNER,
    Bench,
    CheckFailed,
    check,
    describe,
    expect,
    expect_equal,
    expect_failure,
)
from vknode.pool.errors import NOT_FOUND, REFUSED
from vknode.pool.v1 import spec_pb2, status_pb2

SUCCEEDED = status_pb2.SANDBOX_STATE_SUCCEEDED
FAILED = status_pb2.SANDBOX_STATE_FAILED
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.2; done"]
NEVER = spec_pb2.RESTART_POLICY_NEVER
ON_FAILURE = spec_pb2.RESTART_POLICY_ON_FAILURE


@check("a running sandbox reports itself completely")
async def running_status(bench: Bench) -> None:
    spec = bench.spec()
    accepted = await bench.create(spec)
    expect_equal(accepted.uid, spec.uid, "uid of the answer")
    sandbox = await bench.wait(spec, lambda s: s.containers and s.containers[0].ready, "running")
    for name in ("namespace", "name", "cell", "tenant"):
        expect_equal(getattr(sandbox, name), getattr(spec, name), name)
    expect_equal(sandbox.owner, OWNER, "owner")
    expect_equal(sandbox.observed_generation, 1, "observed_generation")
    expect_equal(sandbox.state, status_pb2.SANDBOX_STATE_RUNNING, "state")
    expect(
        sandbox.network_ready and sandbox.initialized, "network_ready and initialized are not set"
    )
    expect(sandbox.pod_ips, "pod_ips is empty")
    expect(not sandbox.deleting, "`deleting` is set")
    expect_equal([c.name for c in sandbox.containers], ["main"], "containers")
    container = sandbox.containers[0]
    expect(
        re.match(r"[a-z-]+://.+", container.container_id),
        f"container_id {container.container_id!r} is not like containerd://0123",
    )
    expect(container.image and container.image_id, "image or image_id is empty")
    expect(container.started, "`started` is not set")
    expect_equal(container.restart_count, 0, "restart_count")
    expect(
        abs(container.state.running.started_at.ToSeconds() - time.time()) < 300,
        "started_at is more than 5 minutes off this machine's clock",
    )
    phases = sandbox.phases
    order = [
        phases.asked,
        phases.sandbox_ready,
        phases.first_container_started,
        phases.containers_started,
    ]
    times = [stamp.ToNanoseconds() for stamp in order]
    expect(all(times), "a phase has no time")
    expect_equal(times, sorted(times), "the phases in order of time")


@check("starts are told by events Created and Started about the container")
async def start_events(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    for reason in ("Created", "Started"):
        try:
            event = await bench.observer.wait_event(spec.uid, reason, bench.settings.timeout)
        except TimeoutError:
            raise CheckFailed(f"no event {reason!r}") from None
        expect_equal(event.type, "Normal", f"type of {reason}")
        expect("main" in event.field_path, f"field_path of {reason} is {event.field_path!r}")


@check("two sandboxes have different Pod IPs")
async def different_ips(bench: Bench) -> None:
    first, second = await asyncio.gather(bench.running(bench.spec()), bench.running(bench.spec()))
    expect(set(first.pod_ips).isdisjoint(second.pod_ips), f"both have {list(first.pod_ips)}")


@check("exit code 0 and no restart: SUCCEEDED with Completed")
async def exit_success(bench: Bench) -> None:
    sandbox = await bench.finished(bench.spec(["sh", "-c", "exit 0"], policy=NEVER))
    expect_equal(sandbox.state, SUCCEEDED, "state")
    end = sandbox.containers[0].state.terminated
    expect_equal((end.exit_code, end.reason), (0, "Completed"), "exit code and reason")
    expect(end.container_id, "terminated.container_id is empty")
    expect(end.finished_at.ToNanoseconds() >= end.started_at.ToNanoseconds() > 0, "times are wrong")


@check("another exit code and no restart: FAILED with the code")
async def exit_failure(bench: Bench) -> None:
    sandbox = await bench.finished(bench.spec(["sh", "-c", "exit 3"], policy=NEVER))
    expect_equal(sandbox.state, FAILED, "state")
    container = sandbox.containers[0]
    end = container.state.terminated
    expect_equal((end.exit_code, end.reason), (3, "Error"), "exit code and reason")
    expect_equal(container.restart_count, 0, "restart_count")
    expect(not container.ready, "an ended container is ready")


@check("ON_FAILURE restarts after a failure, counts, and remembers the last end")
async def restart_on_failure(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "exit 4"], policy=ON_FAILURE)
    await bench.create(spec)
    sandbox = await bench.wait(
        spec,
        lambda s: (
            s.containers
            and s.containers[0].restart_count >= 1
            and s.containers[0].HasField("last_termination")
        ),
        "restarted",
    )
    last = sandbox.containers[0].last_termination.terminated
    expect_equal(last.exit_code, 4, "exit code of the last end")
    sandbox = await bench.wait(
        spec,
        lambda s: s.containers[0].state.waiting.reason == "CrashLoopBackOff",
        "waiting with CrashLoopBackOff",
    )
    expect(sandbox.state not in (SUCCEEDED, FAILED), f"state is {describe(sandbox)}")


@check("ON_FAILURE leaves a success alone")
async def no_restart_on_success(bench: Bench) -> None:
    sandbox = await bench.finished(bench.spec(["true"], policy=ON_FAILURE))
    expect_equal(sandbox.state, SUCCEEDED, "state")
    expect_equal(sandbox.containers[0].restart_count, 0, "restart_count")


@check("init containers run one after another, before the main ones")
async def init_in_order(bench: Bench) -> None:
    spec = bench.spec()
    bench.container(spec, "one", ["sh", "-c", "echo one; sleep 0.3"], init=True)
    bench.container(spec, "two", ["sh", "-c", "echo two"], init=True)
    sandbox = await bench.running(spec)
    one, two = (container.state.terminated for container in sandbox.init_containers)
    expect_equal((one.exit_code, two.exit_code), (0, 0), "exit codes of the init containers")
    stamps = [
        one.finished_at,
        two.started_at,
        two.finished_at,
        sandbox.containers[0].state.running.started_at,
    ]
    times = [stamp.ToNanoseconds() for stamp in stamps]
    expect_equal(times, sorted(times), "ends and starts in order")
    expect(sandbox.initialized, "`initialized` is not set")
    expect_equal(await bench.logs(spec, "one"), b"one\n", "log of the first init container")


@check("an init container that fails for good fails the sandbox; main never starts")
async def init_failure(bench: Bench) -> None:
    spec = bench.spec(policy=NEVER)
    bench.container(spec, "init", ["sh", "-c", "exit 5"], init=True)
    sandbox = await bench.finished(spec)
    expect_equal(sandbox.state, FAILED, "state")
    expect_equal(sandbox.init_containers[0].state.terminated.exit_code, 5, "exit code")
    expect(not sandbox.containers[0].container_id, "the main container was started")
    expect(not sandbox.initialized, "`initialized` is set")


@check("an image that cannot be had keeps the container waiting with the kubelet's reason")
async def image_problems(bench: Bench) -> None:
    never = bench.spec()
    never.containers[0].image = "vknode.invalid/pool-check/absent:none"
    never.containers[0].image_pull_policy = spec_pb2.IMAGE_PULL_POLICY_NEVER
    invalid = bench.spec()
    invalid.containers[0].image = "INVALID//name"
    await asyncio.gather(bench.create(never), bench.create(invalid))

    async def waits(spec: spec_pb2.SandboxSpec, reason: str) -> None:
        sandbox = await bench.wait(
            spec,
            lambda s: s.containers[0].state.waiting.reason == reason,
            f"waiting with {reason}",
        )
        expect(sandbox.containers[0].state.waiting.message, f"{reason} has no message")

    await waits(never, "ErrImageNeverPull")
    await waits(invalid, "InvalidImageName")


@check("config_error holds one container back until an update clears it")
async def config_error(bench: Bench) -> None:
    spec = bench.spec()
    bench.container(spec, "other", spec.containers[0].command[:])
    spec.containers[0].config_error = 'secret "none" not found'
    await bench.create(spec)
    sandbox = await bench.wait(
        spec,
        lambda s: (
            s.containers[0].state.waiting.reason == "CreateContainerConfigError"
            and s.containers[1].state.HasField("running")
        ),
        "waiting with CreateContainerConfigError beside a running container",
    )
    expect_equal(sandbox.containers[0].state.waiting.message, 'secret "none" not found', "message")
    # The Secret was made; that does not raise the Pod's generation.
    spec.containers[0].config_error = ""
    await bench.client.update(spec)
    sandbox = await bench.wait(spec, lambda s: s.containers[0].ready, "started after the update")
    expect_equal(sandbox.observed_generation, 1, "observed_generation")


@check("active_deadline_seconds fails the sandbox with DeadlineExceeded")
async def active_deadline(bench: Bench) -> None:
    spec = bench.spec(policy=NEVER, grace=1)
    spec.active_deadline_seconds = 1
    sandbox = await bench.finished(spec)
    expect_equal((sandbox.state, sandbox.reason), (FAILED, "DeadlineExceeded"), "state and reason")


@check("a deletion sends the stop signal and ends in one `gone` entry")
async def delete_ends(bench: Bench) -> None:
    spec = bench.spec(grace=60)
    await bench.running(spec)
    await bench.says(spec, "ready")  # until its trap is set the kernel drops the signal
    expect((await bench.client.delete(spec.uid)).found, "`found` is false for a running sandbox")
    await bench.gone(spec, 45)  # below the grace: the container ends on SIGTERM
    last = bench.observer.gone[spec.uid]
    end = last.containers[0].state.terminated
    expect(last.containers[0].state.HasField("terminated"), f"gone as: {describe(last)}")
    expect_equal(end.exit_code, 0, "exit code after SIGTERM")
    expect(last.deleting, "`deleting` is not set in the gone entry")
    answer = await bench.client.delete(spec.uid)
    expect(not answer.found, "`found` is true after the end")
    if answer.last is not None:
        expect_equal(describe(answer.last), describe(last), "`last` in the answer after the end")
    expect_equal(bench.observer.gone_count[spec.uid], 1, "number of gone entries")
    await expect_failure(bench.logs(spec), NOT_FOUND)


@check("a container that ignores the stop signal is killed when the grace is over")
async def grace_honoured(bench: Bench) -> None:
    spec = bench.spec(STUBBORN, grace=60)
    await bench.running(spec)
    await bench.says(spec, "ready")
    begin = time.monotonic()
    await bench.client.delete(spec.uid, 2)
    sandbox = await bench.wait(spec, lambda s: s.deleting, "deleting")
    expect(sandbox.containers[0].state.HasField("running"), f"at once: {describe(sandbox)}")
    await bench.gone(spec, 25)  # not its spec's grace, nor the usual 30 s
    took = time.monotonic() - begin
    expect(took >= 1.9, f"killed after {took:.1f} s, before its 2 s of grace")
    end = bench.observer.gone[spec.uid].containers[0].state.terminated
    expect_equal(end.exit_code, 137, "exit code")


@check("a second deletion may shorten the grace, never lengthen it")
async def grace_shortened(bench: Bench) -> None:
    spec = bench.spec(STUBBORN, grace=60)
    await bench.running(spec)
    await bench.says(spec, "ready")
    await bench.client.delete(spec.uid)
    await bench.wait(spec, lambda s: s.deleting, "deleting")
    await bench.client.delete(spec.uid, 1)
    await bench.client.delete(spec.uid, 500)
    await bench.gone(spec, 25)  # not its spec's grace, nor the usual 30 s


@check("a sandbox deleted right after its creation ends too")
async def delete_while_starting(bench: Bench) -> None:
    specs = [bench.spec(grace=1) for _ in range(4)]
    for spec in specs:
        await bench.create(spec)
        answer = await bench.client.delete(spec.uid)
        expect(answer.found, "`found` is false right after the creation")
    for spec in specs:
        await bench.gone(spec, 60)


@check("an update with an older generation changes nothing")
async def stale_update(bench: Bench) -> None:
    spec = bench.spec()
    spec.generation = 5
    await bench.running(spec)
    old = spec_pb2.SandboxSpec()
    old.CopyFrom(spec)
    old.generation = 4
    old.labels["stale"] = "true"
    try:
        sandbox, _ = await bench.client.update(old)
        expect_equal(sandbox.observed_generation, 5, "observed_generation")
    except Exception as error:  # refusing it is as good; anything else is not
        expect(getattr(error, "kind", None) == REFUSED, f"unexpected failure: {error}")


@check("what is settled at the creation stays, is named, and holds no update up")
async def settled(bench: Bench) -> None:
    spec = bench.spec()
    spec.volumes.add(name="scratch").empty_dir.SetInParent()
    spec.containers[0].mounts.add(volume="scratch", path="/scratch")
    before = await bench.running(spec)
    spec.containers[0].command[:] = ["sleep", "1000"]
    spec.runtime_handler = "no-such-handler"
    spec.network.dns.servers[:] = ["192.0.2.53"]
    # And what CreateSandbox would refuse.
    spec.tenant = ""
    spec.network.hostname = "x" * 64
    spec.volumes[0].ClearField("empty_dir")  # as a source that only a newer agent knows
    spec.generation = 2
    sandbox, kept = await bench.client.update(spec)
    expect_equal(sandbox.observed_generation, 2, "observed_generation")
    for path in (
        "containers[0].command",
        "runtime_handler",
        "network.dns",
        "tenant",
        "network.hostname",
        "volumes[0]",
    ):
        named = any(one.startswith(path) or path.startswith(one) for one in kept)
        expect(named, f"`kept` lacks {path}: {kept}")
    sandbox = bench.observer.latest[spec.uid]
    expect_equal(sandbox.containers[0].container_id, before.containers[0].container_id, "container")
