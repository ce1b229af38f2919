"""Ports of the host."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cri.containerds import containerd
from tests.cri.harness import PATIENCE, Harness, pod
from vknode.pool.runtimes.cri.hostports import HostPorts, dump, load, ports_of
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


async def answer(host: str, port: int) -> bytes:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            said = await reader.read()
            writer.close()
            if said:
                return said


def serving(port: int, host_ip: str = "") -> spec_pb2.SandboxSpec:
    spec = pod("while :; do echo hello | nc -l -p 80; done")
    spec.containers[0].ports.add(container_port=80, host_port=port, host_ip=host_ip)
    return spec


@pytest.mark.containerd
async def test_a_host_port_leads_to_the_container_until_it_ends(harness: Harness) -> None:
    port = free_port()
    spec = serving(port)
    assert harness.runtime.problems(spec) == []
    sandbox, _ = await harness.start(spec)
    gateway = ".".join([*sandbox.ips[0].split(".")[:3], "1"])
    assert await answer(gateway, port) == b"hello\n"
    second = serving(port)
    with pytest.raises(Failure) as taken:
        await harness.runtime.run_sandbox(second, 0)
    assert taken.value.message == f"host port {port}/TCP is taken by another Pod on this host"
    await harness.restart()  # a new pool process knows whose it is
    await harness.runtime.inventory()
    with pytest.raises(Failure, match="is taken"):
        await harness.runtime.run_sandbox(second, 0)
    await harness.runtime.remove_sandbox(spec.uid)
    await harness.start(second)
    assert await answer(gateway, port) == b"hello\n"


@pytest.mark.containerd
@pytest.mark.parametrize("end", ["remove_sandbox", "stop_sandbox"])
async def test_a_port_is_free_though_an_inventory_saw_it_in_use(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    port = free_port()
    spec, second = serving(port), serving(port)
    await harness.start(spec)
    status = harness.runtime._sandboxes.status

    async def overtaken(sandbox_id: str) -> cri_pb2.PodSandboxStatus | None:
        found = await status(sandbox_id)
        await getattr(harness.runtime, end)(spec.uid)
        return found

    monkeypatch.setattr(harness.runtime._sandboxes, "status", overtaken)
    await harness.runtime.inventory()
    monkeypatch.undo()
    await harness.start(second)
    known = harness.runtime._known
    assert (spec.uid in known.host_ports) == (end == "stop_sandbox"), "it is forgotten"


@pytest.mark.containerd
async def test_a_sandbox_that_could_not_be_made_keeps_no_port(
    harness: Harness,
) -> None:
    port = free_port()
    spec, second = serving(port), serving(port)
    spec.runtime_handler = "no-such-handler"
    with pytest.raises(Failure):
        await harness.runtime.run_sandbox(spec, 0)
    await harness.start(second)


@pytest.mark.containerd
async def test_a_pod_in_the_hosts_network_has_its_ips_and_hosts_file(harness: Harness) -> None:
    host = Harness(
        Path(harness.options.endpoint),
        harness.options.state_dir,
        harness.options.pool,
        allow_host_namespaces=True,
    )
    await host.connect()
    spec = pod("cat /etc/hosts; hostname; ls /proc | grep -c '^[0-9]*$'; sleep 1000")
    spec.network.host_network = True
    spec.host_pid = True
    spec.host_ips.extend(["192.0.2.7", "2001:db8::7"])
    spec.network.host_aliases.add(ip="10.1.2.3", hostnames=["alias"])
    assert [p.path for p in harness.runtime.problems(spec)] == ["network.host_network", "host_pid"]
    assert host.runtime.problems(spec) == []
    sandbox, ref = await host.start(spec)
    assert sandbox.ips == ("192.0.2.7", "2001:db8::7")
    await host.says(ref, "alias")
    lines = (await host.log(ref)).splitlines()
    assert lines[0] == "# Kubernetes-managed hosts file (host network)."
    own = Path("/etc/hosts").read_text().splitlines()
    assert lines[1 : 1 + len(own)] == own
    end = 1 + len(own)
    assert lines[end : end + 3] == ["", "# Entries added by HostAliases.", "10.1.2.3\talias"]
    await host.says(ref, socket.gethostname())
    await host.restart()
    (found,) = await host.runtime.inventory()
    assert found.ips == sandbox.ips
    await host.clear()
    await host.disconnect()


def test_two_sandboxes_clash_as_kubernetes_ports_do() -> None:
    ports = HostPorts()
    assert ports.claim("a", ports_of(serving(80, "10.0.0.1"))) is None
    assert ports.claim("b", ports_of(serving(80, "10.0.0.2"))) is None
    assert ports.claim("c", ports_of(serving(80, "0.0.0.0"))) == ("TCP", "", 80)
    assert ports.claim("c", ports_of(serving(80, "10.0.0.1"))) == ("TCP", "10.0.0.1", 80)
    udp = serving(80)
    udp.containers[0].ports[0].protocol = "UDP"
    assert ports.claim("c", ports_of(udp)) is None
    assert ports.claim("a", ports_of(serving(80, "10.0.0.1"))) is None, "its own again"
    ports.release("a")
    ports.release("b")
    assert ports.claim("d", ports_of(serving(80))) is None
    assert load(dump(ports_of(udp))) == ports_of(udp) == {("UDP", "", 80)}
    assert load("") == load("nonsense") == load("[1]") == frozenset()


@pytest.mark.containerd
def test_a_dead_zone_leaves_no_rule_of_its_host_ports(
    containerd_programs: dict[str, Path], short_path: Path
) -> None:
    """Power is cut while a Pod has a port of the host."""

    async def run_and_leave(socket_: Path) -> None:
        left = Harness(socket_, short_path / "pool", "p-left")
        await left.connect()
        await left.start(serving(free_port()))
        await left.disconnect()

    with containerd(containerd_programs) as running:
        asyncio.run(run_and_leave(running.socket))
        name = running.zone.record.network
        assert name in rules(containerd_programs)
    assert name not in rules(containerd_programs)


def rules(programs: dict[str, Path]) -> str:
    command = [str(programs["iptables"]), "-w", "60", "-t", "nat", "-S"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
