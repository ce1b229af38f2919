"""Certificates, images, networks, state and child processes of the development cluster."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.until import until
from vknode.devcluster import imagelayout, images, network
from vknode.devcluster.containerd import Places, lacks_sys_resource, render_config, write_mirrors
from vknode.devcluster.identity import manifests_folder, rbac_documents
from vknode.devcluster.nodes import is_ready
from vknode.devcluster.pki import Authority
from vknode.devcluster.ports import PortTaken, pick_port
from vknode.devcluster.process import Child, ChildFailed, Crash, State
from vknode.devcluster.state import (
    StateDir,
    StateInUse,
    StateUnusable,
    ZoneRecord,
    default_state_dir,
)
from vknode.devcluster.zone import letters


def test_certificates_say_who_and_where(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    serving = authority.issue("s", "server", dns=["localhost"], ips=["127.0.0.1", "10.96.0.1"])
    certificate = x509.load_pem_x509_certificate(serving.cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "10.96.0.1",
    ]
    client = authority.issue("c", "me", organizations=["system:masters"])
    certificate = x509.load_pem_x509_certificate(client.cert.read_bytes())
    subject = certificate.subject
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:masters"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH], "a client's cannot pose as a server"
    root = x509.load_pem_x509_certificate(authority.pem)
    certificate.verify_directly_issued_by(root)
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp256r1"
    for key in (serving.key, client.key, authority.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the pause program is x86-64 code")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_pause_program_waits_and_ends_when_asked(tmp_path: Path, number: int) -> None:
    program = tmp_path / "pause"
    program.write_bytes(images.pause_elf())
    program.chmod(0o755)
    assert images.is_static(program)
    process = subprocess.Popen([str(program)])
    try:
        # Asleep it waits for signals; one that comes before would end it as any program.
        until(lambda: _state(process.pid) == "S", "it waits", every=0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_dynamic_busybox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(images.ImagesUnavailable, match="busybox-static"):
        images.write_images(Path(sys.executable).resolve(), tmp_path)


@given(
    st.lists(
        st.builds(
            lambda address, length: ipaddress.IPv4Network((address, length), strict=False),
            st.ip_addresses(v=4, network="10.0.0.0/8").map(int),
            st.integers(14, 32),  # 40 of these cannot fill 10/8
        ),
        max_size=40,
    ),
    st.randoms(),
)
def test_a_block_overlaps_no_route_and_no_service(
    routes: list[ipaddress.IPv4Network], pick: random.Random
) -> None:
    block = network.choose_block(routes, pick)
    assert not any(block.overlaps(route) for route in [*routes, network.USUAL_SERVICES])
    plan = network.plan("abcdef", [f"az{n}" for n in range(1, 27)], block)
    subnets = [one.subnet for one in plan.values()]
    assert len(set(subnets)) == 26 and all(one.subnet_of(block) for one in subnets)
    assert all(len(one.bridge) <= 15 for one in plan.values()), "IFNAMSIZ"


def test_a_full_private_range_is_said() -> None:
    with pytest.raises(network.NetworkFailed):
        network.choose_block([ipaddress.IPv4Network("10.0.0.0/8")])


@pytest.mark.parametrize("major", [1, 2])
def test_each_containerd_shares_nothing(tmp_path: Path, major: int) -> None:
    tomllib = pytest.importorskip("tomllib")
    programs = {"bridge": Path("/usr/lib/cni/bridge"), "runc": Path("/usr/sbin/runc")}
    places = Places(tmp_path / "az1")
    text = render_config(places, programs, major, restrict_oom=True)
    config = tomllib.loads(text)
    assert config["version"] == major + 1
    for path in (config["root"], config["state"], config["grpc"]["address"]):
        assert Path(path).is_relative_to(places.folder)
    assert "restrict_oom_score_adj = true" in text
    assert "config_path" not in text


@pytest.mark.parametrize("major", [1, 2])
def test_a_registry_can_be_mirrored(tmp_path: Path, major: int) -> None:
    tomllib = pytest.importorskip("tomllib")
    programs = {"bridge": Path("/usr/lib/cni/bridge"), "runc": Path("/usr/sbin/runc")}
    places = Places(tmp_path / "az1")
    write_mirrors(places, {"registry.example": "http://127.0.0.1:1"})
    text = render_config(places, programs, major, restrict_oom=False, mirrors=True)
    assert f'config_path = "{places.registries}"' in text and tomllib.loads(text)
    hosts = tomllib.loads((places.registries / "registry.example" / "hosts.toml").read_text())
    assert hosts["server"] == "https://registry.example"
    assert set(hosts["host"]) == {"http://127.0.0.1:1"}


def test_knows_when_oom_scores_cannot_be_lowered() -> None:
    assert lacks_sys_resource("Name:\tx\nCapEff:\t000001fffeffffff\n")
    assert not lacks_sys_resource("CapEff:\t000001ffffffffff\n")


def test_cells_are_lettered() -> None:
    assert letters(3) == ["a", "b", "c"]
    assert letters(28)[25:] == ["z", "aa", "ab"]


def test_the_agent_may_act_as_its_nodes_only() -> None:
    rendered = (manifests_folder() / "base" / "rbac" / "impersonation.yaml").read_text()
    for nodes in (["n1", "n2"], []):
        documents = rbac_documents(rendered, nodes)
        rules = [rule for one in documents for rule in one.get("rules", [])]
        users = [rule for rule in rules if rule["resources"] == ["users"]]
        assert [name for rule in users for name in rule["resourceNames"]] == [
            f"system:node:{node}" for node in nodes
        ]
        # An impersonation rule without names would be a right to be anybody.
        assert all(rule.get("resourceNames") for rule in rules if "impersonate" in rule["verbs"])


def test_the_agents_rights_hold_no_secrets() -> None:
    folder = manifests_folder() / "base" / "rbac"
    seen = 0
    for path in folder.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            for rule in (document or {}).get("rules", []):
                seen += 1
                assert not {"secrets", "configmaps", "serviceaccounts/token", "*"} & set(
                    rule["resources"]
                )
                assert "*" not in rule["verbs"]
    assert seen >= 7


def test_a_port_in_use_is_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} for kube-apiserver"):
            pick_port(port, what="kube-apiserver")
    assert pick_port() != pick_port() or pick_port()


def test_a_second_run_on_the_same_state_is_refused(short_path: Path) -> None:
    first, second = StateDir(short_path / "s"), StateDir(short_path / "s")
    first.check()
    first.acquire()
    first.begin()
    with pytest.raises(StateInUse, match=f"pid {os.getpid()}.*vknode dev stop"):
        second.acquire()
    assert second.held()
    first.release()
    second.acquire()
    record = second.load()
    assert record is not None and record.owner.alive()
    second.release()


def test_the_record_may_be_written_from_threads(short_path: Path) -> None:
    state = StateDir(short_path)
    state.acquire()
    state.begin()
    with ThreadPoolExecutor(8) as pool:
        zone = ZoneRecord("az1", "/x", "n", "b")
        jobs = [pool.submit(state.add_zones, [zone], "mark") for _ in range(50)]
        jobs += [pool.submit(state.add_process, "child", os.getpid()) for _ in range(50)]
    for job in jobs:
        job.result()
    record = state.load()
    assert record is not None
    assert len(record.processes) == 50 and len(record.zones) == 50
    state.clear()
    state.release()


def test_clearing_keeps_what_is_not_ours(short_path: Path) -> None:
    state = StateDir(short_path)
    state.acquire()
    state.begin()
    state.run.mkdir()
    (state.run / "data").write_text("x")
    (short_path / "thesis.txt").write_text("mine")
    assert state.clear() == []
    state.release()
    assert sorted(one.name for one in short_path.iterdir()) == ["lock", "thesis.txt"]


def test_an_unusable_state_directory_is_said(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StateUnusable, match="too long for Unix sockets"):
        StateDir(tmp_path / ("x" * 90)).check(("az1",))
    file = Path("/proc/version")
    with pytest.raises(StateUnusable, match="cannot use the state directory"):
        StateDir(file / "s").check()
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    with pytest.raises(StateUnusable, match="only 3 MiB are free"):
        StateDir(short_path).check()


class _Usage:
    free = 3 << 20


def test_where_state_lives() -> None:
    assert default_state_dir({"VKNODE_DEV_STATE": "/x"}) == Path("/x")
    assert default_state_dir({"XDG_STATE_HOME": "/y"}) == Path("/y/vknode/dev")
    assert default_state_dir({}).parts[-4:] == (".local", "state", "vknode", "dev")


async def test_a_crash_is_reported_with_the_logs_end(tmp_path: Path) -> None:
    crashes: list[Crash] = []
    child = Child(
        "thing",
        ["/bin/sh", "-c", "echo why >&2; exit 7"],
        log=tmp_path / "l",
        on_crash=crashes.append,
    )
    await child.start()
    assert await child.wait() == 7
    assert [(one.returncode, one.last_lines) for one in crashes] == [(7, ("why",))]
    assert "exited with status 7" in str(crashes[0]) and "why" in str(crashes[0])
    assert child.state is State.DEAD


async def test_stopping_is_no_crash_and_ends_the_stubborn(tmp_path: Path) -> None:
    crashes: list[Crash] = []
    child = Child(
        "stubborn",
        ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
        log=tmp_path / "l",
        on_crash=crashes.append,
    )
    await child.start()
    async with asyncio.timeout(60):
        while (tmp_path / "l").read_text() != "up\n":
            await asyncio.sleep(0.01)
    await child.stop(grace=0.1)
    assert child.state is State.DEAD and crashes == []
    await child.start()  # may be started again
    await child.kill()
    assert crashes == []


async def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    child = Child("ghost", ["/no/such/program"], log=tmp_path / "l")
    with pytest.raises(ChildFailed, match="ghost: /no/such/program"):
        await child.start()


@pytest.mark.parametrize("late", [False, True])
def test_children_die_with_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    # SIGKILL leaves no chance to tidy up: the kernel has to do it. `late`: the parent is gone
    # before the child has asked for that.
    if late:
        slow = tmp_path / "setpriv"
        slow.write_text('#!/bin/sh\nsleep 1; PATH=$REAL exec setpriv "$@"\n')
        slow.chmod(0o755)
        monkeypatch.setenv("REAL", os.environ["PATH"])
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = """
import asyncio, pathlib, sys
from vknode.devcluster.process import Child
async def main():
    child = Child("c", ["/bin/sleep", "1000"], log=pathlib.Path(sys.argv[1]) / "l")
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: _state(pid) == "Z", "the child gone with its parent", every=0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_image_layout_is_reproducible(tmp_path: Path) -> None:
    layout_one, layout_two = imagelayout.Layout(), imagelayout.Layout()
    entry = imagelayout.Entry("bin/x", b"content", 0o755)
    assert layout_one.layer([entry]) == layout_two.layer([entry])
    json.dumps(layout_one.layer([entry]))


def test_a_node_is_ready_once_the_scheduler_may_use_it() -> None:
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    tainted = {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}
    chosen = {"taints": [{"key": "example.com/gpu", "effect": "NoSchedule"}]}
    assert is_ready(ready)
    assert is_ready({**ready, "spec": chosen}), "a taint of the user's own is no sign of trouble"
    assert not is_ready({**ready, "spec": tainted})
    assert not is_ready({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert not is_ready({})
