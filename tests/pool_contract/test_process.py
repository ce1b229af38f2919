"""`vknode pool` as a program: its start, its messages, its end, its restart."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.pool_contract.poolprocess import pool_process, vknode
from vknode.pool.check.observer import Observer
from vknode.pool.client import PoolClient
from vknode.pool.errors import NO_CAPACITY, PoolFailure
from vknode.pool.v1 import spec_pb2, status_pb2

SIM = ("--runtime", "sim")
FAILED = status_pb2.SANDBOX_STATE_FAILED


def _options(folder: Path) -> list[str]:
    return [
        *("pool", "--runtime", "sim", "--zone", "az1", "--listen", f"unix:{folder}/pool.sock"),
        *("--state-dir", str(folder / "state")),
    ]


@asynccontextmanager
async def observed(endpoint: str) -> AsyncIterator[tuple[PoolClient, Observer]]:
    client = PoolClient("test", endpoint)
    observer = Observer(client)
    task = asyncio.create_task(observer.run())
    try:
        yield client, observer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


def _spec(uid: str) -> spec_pb2.SandboxSpec:
    spec = spec_pb2.SandboxSpec(
        uid=uid,
        namespace="default",
        name=uid,
        cell="az1-a",
        tenant="default",
        restart_policy=spec_pb2.RESTART_POLICY_ALWAYS,
    )
    spec.containers.add(
        name="main", image="busybox", image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_ALWAYS
    )
    return spec


async def _connected(client: PoolClient) -> None:
    async with asyncio.timeout(60):
        while not client.connected:
            await asyncio.sleep(0.01)


async def test_cells_say_that_they_are_simulated(tmp_path: Path) -> None:
    async with pool_process(tmp_path, *SIM, "--region", "here") as pool:
        ready = await pool.event("pool_ready")
        assert (ready["runtime"], ready["cells"]) == ("sim", 2)
        client = PoolClient("test", f"unix:{tmp_path}/pool.sock")
        watch = client.cells()
        cells = {cell.name: cell for cell in (await anext(watch)).cells}
        await watch.aclose()
        await client.close()
        assert cells.keys() == {"az1-a", "az1-b"}
        cell = cells["az1-a"]
        assert (cell.zone, cell.region) == ("az1", "here")
        assert dict(cell.capacity) == {"cpu": "8", "memory": "16Gi", "pods": "110"}
        assert cell.labels["vknode.dev/simulated"] == "true"
        assert cell.info.container_runtime_version.startswith("sim://")


async def test_sandboxes_outlive_a_killed_pool(tmp_path: Path) -> None:
    endpoint = f"unix:{tmp_path}/pool.sock"
    async with observed(endpoint) as (client, observer):
        async with pool_process(tmp_path, *SIM) as pool:
            await pool.event("pool_ready")
            await _connected(client)
            for number in range(5):
                await client.create(_spec(f"uid-{number}"), "owner")
            before = [await observer.wait(f"uid-{number}", _runs, 60) for number in range(5)]
            await pool.end(signal.SIGKILL)
            epoch = observer.epoch  # before the next one, whose watch may be there at once
        async with pool_process(tmp_path, *SIM) as pool:
            await pool.event("pool_ready")
            begin = time.monotonic()
            async with asyncio.timeout(60):
                while observer.epoch == epoch:
                    await asyncio.sleep(0.02)
            assert time.monotonic() - begin < 20
            for number, old in enumerate(before):
                now = await observer.wait(f"uid-{number}", _runs, 60)
                assert now.pod_ips == old.pod_ips
                assert now.containers[0].container_id == old.containers[0].container_id
                assert now.containers[0].restart_count == 0


def _runs(sandbox: status_pb2.Sandbox) -> bool:
    return bool(sandbox.containers) and sandbox.containers[0].ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_within_seconds_although_watched(tmp_path: Path, number: int) -> None:
    async with (
        observed(f"unix:{tmp_path}/pool.sock") as (client, observer),
        pool_process(tmp_path, *SIM) as pool,
    ):
        await pool.event("pool_ready")
        await _connected(client)
        await client.create(_spec("uid"), "owner")
        await observer.wait("uid", _runs, 60)
        begin = time.monotonic()
        assert await pool.end(number) == 0
        assert time.monotonic() - begin < 20
        assert not (tmp_path / "pool.sock").exists()


async def test_a_second_pool_is_told(tmp_path: Path) -> None:
    async with pool_process(tmp_path, *SIM) as pool:
        await pool.event("pool_ready")
        code, _, err = await vknode(*_options(tmp_path))
        assert code == 2 and "another pool uses it" in err
        other = tmp_path / "other"
        other.mkdir()
        arguments = _options(tmp_path)
        arguments[-1] = str(other)
        code, _, err = await vknode(*arguments)
        assert code == 3 and "another process listens there" in err


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--listen", "nonsense"], 2, "neither unix:PATH nor HOST:PORT"),
        (["--listen", "127.0.0.1:0"], 3, "mutual TLS"),
        (["--cell-capacity", "cpu=8"], 2, "memory is missing"),
        (["--cell-capacity", "cpu=8,memory=lots,pods=1"], 2, "no quantity"),
        (["--zone", "Not A Label"], 2, "DNS label"),
        (["--tls-cert", "x"], 2, "must be given together"),
        (["--sim-config", "BROKEN"], 2, "latency.sandbox.median"),
        (["--sim-config", "NONE"], 2, "none.yaml"),
        (["--state-dir", "BROKEN"], 2, "--state-dir"),
        (["--allow-privileged"], 2, "--allow-privileged is for --runtime cri"),
        (["--allow-host-path", "etc"], 2, "not an absolute path"),
        (["--allow-unsafe-sysctl", "vm.swappiness"], 2, "not known to be namespaced"),
        (["--seccomp-dir", "NONE"], 2, "does not exist"),
        (["--cgroup-parent", "pods"], 2, "neither a path from / nor a slice"),
        (["--runtime", "cri"], 1, "none.sock did not answer in time"),
    ],
    ids=lambda value: "-".join(value).lstrip("-") if isinstance(value, list) else "",
)
async def test_wrong_options_say_what_to_do(
    tmp_path: Path, extra: list[str], code: int, words: str
) -> None:
    broken = tmp_path / "sim.yaml"
    broken.write_text("latency: {sandbox: {median: fast}}")
    paths = {"BROKEN": str(broken), "NONE": str(tmp_path / "none.yaml")}
    options = [*_options(tmp_path), *(paths.get(one, one) for one in extra)]
    if extra[-1] == "cri":
        options += ["--runtime-endpoint", f"unix://{tmp_path}/none.sock"]
    seen, _, err = await vknode(*options)
    assert (seen, words in err) == (code, True), (seen, err)
    assert "Traceback" not in err


async def test_a_drained_cell_is_emptied_and_stays_so_over_a_restart(tmp_path: Path) -> None:
    endpoint, state = f"unix:{tmp_path}/pool.sock", ("--state-dir", str(tmp_path / "state"))
    async with observed(endpoint) as (client, observer):
        async with pool_process(tmp_path, *SIM) as pool:
            await pool.event("pool_ready")
            await _connected(client)
            await client.create(_spec("uid-1"), "owner")
            await observer.wait("uid-1", _runs, 60)
            code, out, _ = await vknode("pool-drain", *state, "az1-a")
            assert (code, out) == (0, "cell az1-a will be emptied\n")
            ended = await observer.wait("uid-1", lambda s: s.state == FAILED, 60)
            assert ended.reason == "Terminated"
            await pool.end(signal.SIGKILL)
        async with pool_process(tmp_path, *SIM) as pool:
            await pool.event("pool_ready")
            await _connected(client)
            with pytest.raises(PoolFailure) as refused:
                await client.create(_spec("uid-2"), "owner")
            assert (refused.value.kind, refused.value.field) == (NO_CAPACITY, "cell")
            code, out, _ = await vknode("pool-drain", *state, "--undo", "az1-a")
            assert (code, out) == (0, "cell az1-a takes sandboxes again\n")
            watch = client.cells()
            async with asyncio.timeout(60):
                draining = True
                while draining:
                    for cell in (await anext(watch)).cells:
                        draining = cell.draining if cell.name == "az1-a" else draining
            await watch.aclose()
            await client.create(_spec("uid-2"), "owner")
            await observer.wait("uid-2", _runs, 60)


async def test_a_drain_is_heard_though_its_folder_was_made_anew(tmp_path: Path) -> None:
    endpoint, state = f"unix:{tmp_path}/pool.sock", ("--state-dir", str(tmp_path / "state"))
    async with observed(endpoint) as (client, observer), pool_process(tmp_path, *SIM) as pool:
        await pool.event("pool_ready")
        await _connected(client)
        await client.create(_spec("uid-1"), "owner")
        await observer.wait("uid-1", _runs, 60)
        folder = tmp_path / "state" / "draining"
        folder.rmdir()
        folder.mkdir(exist_ok=True)  # the pool, which sees it go, may have been the quicker
        assert (await vknode("pool-drain", *state, "az1-a"))[0] == 0
        await observer.wait("uid-1", lambda s: s.state == FAILED, 60)


async def test_a_drain_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    code, _, said = await vknode("pool-drain", "--state-dir", str(tmp_path), "az1-a")
    assert code == 2 and "no pool keeps its state there" in said
    async with pool_process(tmp_path, *SIM) as pool:
        await pool.event("pool_ready")
        state = str(tmp_path / "state")
        code, _, said = await vknode("pool-drain", "--state-dir", state, "az1-a", "az9-a")
        assert code == 2 and "no cell 'az9-a'; it has az1-a, az1-b" in said
        assert not list((tmp_path / "state" / "draining").iterdir())
