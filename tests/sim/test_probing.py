"""What probes and hooks of simulated containers say, and resizes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.sim.support import QUICK, make_spec, run_exec, simulation, start
from tests.support.stepped import stepped
from vknode.pool.runtimes.base import Failure, ProbeResult
from vknode.pool.runtimes.sim.config import Outage, SimConfig
from vknode.pool.runtimes.sim.journal import Journal
from vknode.pool.runtimes.sim.runtime import SimRuntime
from vknode.pool.v1 import spec_pb2

HTTP = spec_pb2.Handler(http_get=spec_pb2.Handler.HttpGet(path="/ready", port=80))
TCP = spec_pb2.Handler(tcp_socket=spec_pb2.Handler.TcpSocket(port=81))
EXEC = spec_pb2.Handler(exec=spec_pb2.Handler.Exec(command=["is", "it"]))


async def asked(
    runtime: SimRuntime, spec: spec_pb2.SandboxSpec, handler: spec_pb2.Handler, timeout: float = 5
) -> tuple[ProbeResult, str]:
    _, ref = await start(runtime, spec)
    found = await runtime.probe(ref, [], handler, timeout)
    return found.result, found.output


async def test_probes_and_hooks_succeed_where_nothing_was_said() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        for handler in (HTTP, TCP, EXEC):
            assert (await runtime.probe(ref, [], handler, 1)).result is ProbeResult.SUCCESS
            await runtime.hook(ref, [], handler, None)


@stepped
async def test_annotations_make_probes_fail() -> None:
    async with simulation() as runtime:
        spec = make_spec(uid="a", probe_error="bad day")
        assert await asked(runtime, spec, HTTP) == (ProbeResult.FAILURE, "bad day")
        spec = make_spec(uid="b", exec_exit_code="3")
        assert await asked(runtime, spec, EXEC) == (ProbeResult.FAILURE, "")
        assert (await asked(runtime, spec, HTTP))[0] is ProbeResult.SUCCESS
        spec = make_spec(uid="c", probe_latency="10s")
        found = await asked(runtime, spec, HTTP, timeout=0.01)
        assert found == (ProbeResult.FAILURE, "simulated: context deadline exceeded")


async def test_only_some_probes_fail_where_that_is_said() -> None:
    async with simulation() as runtime:
        for only, failing in (("/ready", HTTP), ("81", TCP), ("is it", EXEC)):
            _, ref = await start(
                runtime, make_spec(uid=only.strip("/ "), probe_error="no", probe_only=only)
            )
            for handler in (HTTP, TCP, EXEC):
                found = await runtime.probe(ref, [], handler, 1)
                assert (found.result is ProbeResult.FAILURE) == (handler is failing)


@stepped
async def test_probes_fail_from_and_until_some_age() -> None:
    async with simulation() as runtime:
        for spec, expected in (
            (make_spec(uid="a", probe_fail_after="1h"), ProbeResult.SUCCESS),
            (make_spec(uid="b", probe_fail_until="1h"), ProbeResult.FAILURE),
            (make_spec(uid="c", probe_fail_after="0s"), ProbeResult.FAILURE),
            (make_spec(uid="d", probe_fail_until="0s"), ProbeResult.SUCCESS),
        ):
            assert (await asked(runtime, spec, HTTP))[0] is expected


async def test_probes_fail_as_often_as_configured() -> None:
    config = SimConfig(latency=QUICK, failures={"probe": 0.5, "hook": 1.0})
    async with simulation(config) as runtime:
        _, ref = await start(runtime, make_spec())
        found = [(await runtime.probe(ref, [], HTTP, 1)).result for _ in range(200)]
        assert 50 < found.count(ProbeResult.FAILURE) < 150
        with pytest.raises(Failure, match="by configuration"):
            await runtime.hook(ref, [], HTTP, None)


@stepped
async def test_hooks_take_their_time_and_fail_as_annotated() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec(uid="a", hook_error="no"))
        with pytest.raises(Failure, match="no"):
            await runtime.hook(ref, [], EXEC, None)
        _, ref = await start(runtime, make_spec(uid="b", hook_latency="1h"))
        now = asyncio.get_running_loop().time
        begin = now()
        with pytest.raises(Failure) as late:
            await runtime.hook(ref, [], EXEC, 0.02)
        assert late.value.reason == "DeadlineExceeded" and now() - begin < 5


async def test_what_has_ended_cannot_be_asked() -> None:
    async with simulation() as runtime:
        _, ref = await start(runtime, make_spec())
        await runtime.stop_container(ref, 0)
        assert (await runtime.probe(ref, [], HTTP, 1)).result is ProbeResult.ERROR
        with pytest.raises(Failure):
            await runtime.hook(ref, [], HTTP, None)


@stepped
async def test_a_runtime_that_is_away_says_so() -> None:
    config = SimConfig(latency=QUICK, outages=(Outage(0.05, 60),))
    async with simulation(config) as runtime:
        _, ref = await start(runtime, make_spec())
        async with asyncio.timeout(30):
            async for _ in runtime.events():
                break
        with pytest.raises(Failure) as away:
            await runtime.probe(ref, [], HTTP, 1)
        assert away.value.reason == "RuntimeUnavailable"


async def test_a_resized_container_still_knows_its_address() -> None:
    spec = make_spec()
    spec.pod_ip_token = "@IP@"
    spec.containers[0].env.add(name="IP", value="@IP@")
    async with simulation() as runtime:
        sandbox, ref = await start(runtime, spec)
        new = spec_pb2.Container.FromString(spec.containers[0].SerializeToString())
        new.resources.limits["cpu"] = "2"
        await runtime.resize_container(spec, new, ref)
        _, output, _ = await run_exec(runtime, ref, ["env"])
    assert f"IP={sandbox.ips[0]}\n".encode() in output


async def test_a_resize_outlives_a_restart_of_the_pool(tmp_path: Path) -> None:
    spec = make_spec()
    async with simulation(journal=Journal(tmp_path / "j")) as runtime:
        _, ref = await start(runtime, spec)
        new = spec_pb2.Container.FromString(spec.containers[0].SerializeToString())
        new.resources.limits["cpu"] = "2"
        await runtime.resize_container(spec, new, ref)
        await runtime.resize_container(spec, new, ref)
    journal = Journal(tmp_path / "j")
    (sandbox,) = journal.load()
    journal.close()
    (container,) = sandbox.containers
    assert container.ref == ref and dict(container.spec.resources.limits) == {"cpu": "2"}
