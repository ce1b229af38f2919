"""Zones on real containerd: separate, routed to each other, and gone without a trace."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from vknode.devcluster import network
from vknode.devcluster.images import BUSYBOX_IMAGE, WEB_IMAGES
from vknode.devcluster.mounts import mounts_below
from vknode.devcluster.process import process_start_time
from vknode.devcluster.programs.catalog import CONTAINERD, ProgramsMissing
from vknode.devcluster.programs.provide import require
from vknode.devcluster.state import Process, RunRecord, boot_id
from vknode.devcluster.sweep import cgroup_paths, shim_sockets, sweep, zone_processes
from vknode.devcluster.zone import PoolOptions, Zone, prepare_images
from vknode.pool.runtimes.cri.wire import cri_pb2 as cri
from vknode.pool.runtimes.cri.wire import cri_pb2_grpc as cri_grpc

pytestmark = pytest.mark.containerd


class Zones:
    """Two zones without pools, and what is needed to sweep them."""

    def __init__(self, folder: Path, programs: dict[str, Path]) -> None:
        self.folder = folder
        self.programs = programs
        self.zones: list[Zone] = []
        started = process_start_time(os.getpid())
        assert started is not None
        self.record = RunRecord(boot_id(), Process("test", os.getpid(), started))

    async def start(self) -> None:
        ip = self.programs["ip"]
        self.record.firewall_mark = mark = f"vknode-test-{os.getpid()}"
        with network.reserving():
            block = network.choose_block(network.current_routes(ip))
            for name, one in network.plan(
                f"t{os.getpid() % 100000}", ["az1", "az2"], block
            ).items():
                network.make_bridge(ip, one)
                zone = Zone(
                    name,
                    self.folder / "zones" / name,
                    logs=self.folder / "logs",
                    options=PoolOptions("cri"),
                    programs=self.programs,
                    network=one,
                )
                self.zones.append(zone)
                self.record.zones.append(zone.record)
        network.open_firewall(self.programs["iptables"], block, mark)
        self.images = await prepare_images(self.programs["busybox"], self.folder / "images")
        await asyncio.gather(*(zone.start_containerd(self.images) for zone in self.zones))


@pytest.fixture
async def zones(short_path: Path) -> AsyncIterator[Zones]:
    if os.geteuid() != 0:
        pytest.skip("containerd needs root: run the tests as root")
    try:
        programs = require(CONTAINERD)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    # Resolved: mounts are known by their real path.
    both = Zones(short_path.resolve(), programs)
    try:
        await both.start()
        yield both
    finally:
        for zone in both.zones:
            if zone.containerd is not None:
                await zone.containerd.kill()
        left = await asyncio.to_thread(sweep, both.record, programs)
    assert left == []


async def initialized(runtime: cri_grpc.RuntimeServiceAsyncStub) -> None:
    """A containerd listens, and takes images, a moment before its CRI plugin does."""
    async with asyncio.timeout(120):
        while True:
            try:
                await runtime.Status(cri.StatusRequest())
                return
            except grpc.aio.AioRpcError as error:
                assert "not initialized" in (error.details() or ""), error
                await asyncio.sleep(0.02)


async def run_pod(zone: Zone, name: str, image: str, *command: str) -> tuple[str, str]:
    """A sandbox with one running container; the container's id and the Pod's IP."""
    async with grpc.aio.insecure_channel(f"unix://{zone.places.socket}") as channel:
        runtime = cri_grpc.RuntimeServiceStub(channel)
        await initialized(runtime)
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            linux=cri.LinuxPodSandboxConfig(),
        )
        sandbox = await runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config))
        status = await runtime.PodSandboxStatus(
            cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox.pod_sandbox_id)
        )
        container = await runtime.CreateContainer(
            cri.CreateContainerRequest(
                pod_sandbox_id=sandbox.pod_sandbox_id,
                sandbox_config=config,
                config=cri.ContainerConfig(
                    metadata=cri.ContainerMetadata(name="main"),
                    image=cri.ImageSpec(image=image),
                    command=command,
                ),
            )
        )
        await runtime.StartContainer(cri.StartContainerRequest(container_id=container.container_id))
        return container.container_id, status.status.network.ip


async def execute(zone: Zone, container: str, *command: str) -> str:
    """Standard output of a command in a container."""
    async with grpc.aio.insecure_channel(f"unix://{zone.places.socket}") as channel:
        runtime = cri_grpc.RuntimeServiceStub(channel)
        done = await runtime.ExecSync(
            cri.ExecSyncRequest(container_id=container, cmd=command, timeout=60)
        )
        assert done.exit_code == 0, done.stderr
        text: bytes = done.stdout
        return text.decode()


async def test_zones_are_apart_and_reach_each_other(zones: Zones) -> None:
    one, two = zones.zones
    client, _ = await run_pod(one, "client", BUSYBOX_IMAGE, "sleep", "1000")
    _, address = await run_pod(two, "server", WEB_IMAGES[0])
    assert two.network is not None and one.network is not None
    assert ipaddress.ip_address(address) in two.network.subnet
    assert not one.network.subnet.overlaps(two.network.subnet)

    async with asyncio.timeout(120):  # the server may need a moment until it listens
        while True:
            try:
                said = await execute(one, client, "fetch", address)
                break
            except AssertionError:
                await asyncio.sleep(0.05)
    assert said == "hello from web v1\n"

    # A power cut takes everything of one zone and nothing of the other.
    shims = shim_sockets(two.places)
    groups = cgroup_paths(two.places)
    assert len(shims) >= 1 and len(groups) == 2
    assert await two.kill() == []
    assert zone_processes(two.places) == []
    assert mounts_below(two.folder) == []
    assert not any(socket.exists() for socket in shims)
    assert not any(Path(f"/sys/fs/cgroup/memory{group}").exists() for group in groups)
    assert await execute(one, client, "echo", "alive") == "alive\n"

    # And it comes back with its images.
    await two.start_containerd(zones.images)
    _, address = await run_pod(two, "again", WEB_IMAGES[1])
    assert address


async def test_a_sweep_from_the_record_alone_leaves_nothing(zones: Zones) -> None:
    one = zones.zones[0]
    await run_pod(one, "web", WEB_IMAGES[0])
    assert one.containerd is not None and one.network is not None
    # As after a SIGKILL of `vknode dev`: nobody is left to end anything in order.
    zones.record.processes.append(
        Process("containerd", one.containerd.pid, process_start_time(one.containerd.pid) or 0)
    )
    one.containerd.state = type(one.containerd.state).STOPPING  # its death is no crash
    record = RunRecord.parse(zones.record.dump())
    assert await asyncio.to_thread(sweep, record, zones.programs) == []
    assert zone_processes(one.places) == []
    assert mounts_below(one.folder) == []
    assert not Path(f"/sys/class/net/{one.network.bridge}").exists()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    assert record.firewall_mark not in rules
    # Again is harmless.
    assert await asyncio.to_thread(sweep, record, zones.programs) == []


def test_never_kills_a_recycled_pid() -> None:
    me = os.getpid()
    started = process_start_time(me)
    assert started is not None
    assert not Process("somebody else now", me, started - 1).alive()
    record = RunRecord(
        boot_id(), Process("old", me, started - 1), [Process("child", me, started - 1)]
    )
    assert sweep(record, {}) == []  # we live
