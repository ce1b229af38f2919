"""Probes, hooks and resizes of containers on a real containerd."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.cri.harness import PATIENCE, Harness, pod
from vknode.pool.runtimes.facts import ContainerRef, Failure, ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

pytestmark = pytest.mark.containerd


def command(*words: str) -> spec_pb2.Handler:
    return spec_pb2.Handler(exec=spec_pb2.Handler.Exec(command=words))


def shell(script: str) -> spec_pb2.Handler:
    return command("sh", "-c", script)


def get(path: str, port: int = 8080) -> spec_pb2.Handler:
    return spec_pb2.Handler(http_get=spec_pb2.Handler.HttpGet(path=path, port=port))


async def until_found(harness: Harness, ref: ContainerRef, ips: tuple[str, ...]) -> None:
    """A server needs a moment to listen."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await harness.runtime.probe(ref, ips, get("/ok"), PATIENCE)
            if found.result is ProbeResult.SUCCESS:
                return
            await asyncio.sleep(0.02)


async def test_a_command_says_how_the_container_is(harness: Harness) -> None:
    spec = pod("touch /healthy", "echo up", "sleep 1000")
    _, ref = await harness.start(spec)
    await harness.says(ref, "up")
    probe = harness.runtime.probe
    found = await probe(ref, (), command("cat", "/healthy"), PATIENCE)
    assert found == ProbeOutcome(ProbeResult.SUCCESS)
    found = await probe(ref, (), shell("echo out; echo err >&2; exit 3"), PATIENCE)
    assert found == ProbeOutcome(ProbeResult.FAILURE, "out\nerr\n")
    found = await probe(ref, (), shell("yes | head -c 100000; exit 1"), PATIENCE)
    assert found == ProbeOutcome(ProbeResult.FAILURE, "y\n" * 5120)


async def test_a_command_that_takes_too_long_is_a_failure_and_ends(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    found = await harness.runtime.probe(ref, (), command("sleep", "987"), 1)
    assert found == ProbeOutcome(
        ProbeResult.FAILURE, 'command timed out: "sleep 987" timed out after 1s'
    )
    code, out = await harness.runtime.exec_sync(ref, ["ps"], PATIENCE)
    assert code == 0 and b"sleep 1000" in out and b"987" not in out


async def test_a_command_that_cannot_run_says_nothing_of_the_container(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    found = await harness.runtime.probe(ref, (), command("/no/such/probe"), PATIENCE)
    assert found.result is ProbeResult.ERROR
    assert found.output.startswith("rpc error: code = ") and "/no/such/probe" in found.output
    await harness.runtime.stop_container(ref, 0)
    await harness.exit_of(ref)
    found = await harness.runtime.probe(ref, (), command("true"), PATIENCE)
    assert found.result is ProbeResult.ERROR


async def test_a_server_in_the_pod_is_asked_by_its_ip(harness: Harness) -> None:
    spec = pod("mkdir /w", "echo fine > /w/ok", "exec httpd -f -p 8080 -h /w")
    sandbox, ref = await harness.start(spec)
    await until_found(harness, ref, sandbox.ips)
    probe = harness.runtime.probe
    assert await probe(ref, sandbox.ips, get("/ok"), PATIENCE) == ProbeOutcome(
        ProbeResult.SUCCESS, "fine\n"
    )
    assert await probe(ref, sandbox.ips, get("/missing"), PATIENCE) == ProbeOutcome(
        ProbeResult.FAILURE, "HTTP probe failed with statuscode: 404"
    )
    socket = spec_pb2.Handler.TcpSocket
    listening = spec_pb2.Handler(tcp_socket=socket(port=8080))
    assert (await probe(ref, sandbox.ips, listening, PATIENCE)).result is ProbeResult.SUCCESS
    silent = spec_pb2.Handler(tcp_socket=socket(port=8081))
    assert await probe(ref, sandbox.ips, silent, PATIENCE) == ProbeOutcome(
        ProbeResult.FAILURE, f"dial tcp {sandbox.ips[0]}:8081: connect: connection refused"
    )
    await harness.runtime.hook(ref, sandbox.ips, get("/missing"), None)  # any answer is good
    with pytest.raises(Failure) as failed:
        await harness.runtime.hook(ref, sandbox.ips, get("/bye", 8081), None)
    assert failed.value.message == (
        f'HTTP lifecycle hook (/bye) for Container "main" in Pod "web_default({spec.uid})" '
        f'failed - error: Get "http://{sandbox.ips[0]}:8081/bye": '
        f"dial tcp {sandbox.ips[0]}:8081: connect: connection refused"
    )


async def test_a_hook_runs_to_its_end_and_tells_why_it_failed(harness: Harness) -> None:
    spec = pod()
    _, ref = await harness.start(spec)
    await harness.runtime.hook(ref, (), shell("sleep 1; echo done > /hooked"), None)
    assert (await harness.runtime.exec_sync(ref, ["cat", "/hooked"], PATIENCE))[1] == b"done\n"
    expected = (
        'Exec lifecycle hook ([sh -c echo out; echo err >&2; exit 4]) for Container "main" in '
        f'Pod "web_default({spec.uid})" failed - error: command \'sh -c echo out; echo err >&2; '
        'exit 4\' exited with 4: err\n, message: "out\\nerr\\n"'
    )
    for _ in range(2):
        with pytest.raises(Failure) as failed:
            await harness.runtime.hook(ref, (), shell("echo out; echo err >&2; exit 4"), None)
        assert failed.value.message == expected
        await harness.restart()  # a new pool process knows the Pod's name, too
        await harness.runtime.inventory()


async def test_a_hook_that_is_given_up_leaves_no_process(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    begin = time.monotonic()
    with pytest.raises(Failure) as late:
        await harness.runtime.hook(ref, (), command("sleep", "986"), 1.0)
    assert late.value.reason == "DeadlineExceeded" and time.monotonic() - begin < 20
    running = asyncio.create_task(harness.runtime.hook(ref, (), command("sleep", "985"), None))
    await _seen(harness, ref, b"985", True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await _seen(harness, ref, b"985", False)
    await _seen(harness, ref, b"986", False)


async def _seen(harness: Harness, ref: ContainerRef, text: bytes, there: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while (text in (await harness.runtime.exec_sync(ref, ["ps"], PATIENCE))[1]) != there:
            await asyncio.sleep(0.05)


async def test_slow_commands_do_not_hold_up_other_probes(harness: Harness) -> None:
    _, ref = await harness.start(pod())
    slow = [
        asyncio.create_task(harness.runtime.probe(ref, (), command("sleep", "600"), 600))
        for _ in range(20)
    ]
    async with asyncio.timeout(PATIENCE):
        found = await harness.runtime.probe(ref, (), command("true"), PATIENCE)
    assert found.result is ProbeResult.SUCCESS
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_resources_change_while_a_container_runs(harness: Harness) -> None:
    spec = pod()
    main = spec.containers[0]
    main.resources.limits.update({"cpu": "500m", "memory": "64Mi"})
    _, ref = await harness.start(spec)
    main.resources.limits.update({"cpu": "250m", "memory": "128Mi"})
    main.resources.requests.update({"cpu": "100m"})
    await harness.runtime.resize_container(spec, main, ref)
    assert await cgroup(harness, ref) == [25_000, 102, 128 << 20]
    main.resources.limits.clear()  # without a limit there is none any more
    await harness.runtime.resize_container(spec, main, ref)
    quota, shares, memory = await cgroup(harness, ref)
    assert (quota, shares) == (-1, 102) and memory > 1 << 60
    await harness.runtime.stop_container(ref, 0)
    await harness.exit_of(ref)
    await harness.runtime.resize_container(spec, main, ref)  # ended: no error


async def cgroup(harness: Harness, ref: ContainerRef) -> list[int]:
    root = Path("/sys/fs/cgroup")
    files = [
        root / "cpu/cpu.cfs_quota_us",
        root / "cpu/cpu.shares",
        root / "memory/memory.limit_in_bytes",
    ]
    code, out = await harness.runtime.exec_sync(ref, ["cat", *map(str, files)], PATIENCE)
    assert code == 0, out
    return [int(line) for line in out.split()]
