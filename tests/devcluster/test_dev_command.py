"""`vknode dev` as a person uses it: start, status, faults, stop, and after a SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vknode.devcluster.kubectl import Kubectl
from vknode.devcluster.mounts import mounts_below
from vknode.devcluster.programs.catalog import CONTAINERD, ProgramsMissing
from vknode.devcluster.programs.provide import require
from vknode.devcluster.state import RunRecord, StateDir

VKNODE = (sys.executable, "-m", "vknode")
#: Seconds for a test that starts and stops a cluster, with those of all its commands.
CLUSTER = pytest.mark.timeout(900)


@dataclass
class Dev:
    """A running `vknode dev`."""

    process: subprocess.Popen[str]
    state: StateDir
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, timeout: float = 240.0) -> None:
        until(lambda: text in self.text() or self.process.poll() is not None, timeout)
        assert text in self.text(), self.text()


def until(condition: Callable[[], bool], timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


@contextlib.contextmanager
def dev(folder: Path, *arguments: str) -> Iterator[Dev]:
    state = StateDir(folder / "s")
    output = folder / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            [*VKNODE, "dev", *arguments, "--state-dir", str(state.path)],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield Dev(process, state, output)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        vknode("dev", "stop", "--state-dir", str(state.path))


def vknode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VKNODE, *arguments], capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.cluster
@CLUSTER
def test_a_simulated_cluster_from_start_to_stop(
    short_path: Path, control_plane_programs: dict[str, Path]
) -> None:
    with dev(
        short_path, "--runtime", "sim", "--zones", "2", "--cells-per-zone", "1", "--fault-proxy"
    ) as running:
        running.wait_for("Ctrl-C")
        said = running.text()
        assert "2 nodes in 2 zones" in said and f"KUBECONFIG={running.state.kubeconfig}" in said
        assert "/faults" in said
        flag = ("--state-dir", str(running.state.path))
        kubectl = Kubectl(
            control_plane_programs["kubectl"], running.state.kubeconfig, short_path / "cache"
        )
        assert kubectl("get", "nodes", "-o", "name").split() == ["node/az1-a", "node/az2-a"]

        shown = json.loads(vknode("dev", "status", "--json", *flag).stdout)
        assert set(shown["zones"]) == {"az1", "az2"}
        assert set(shown["children"].values()) == {"running"}

        second = vknode("dev", "--runtime", "sim", *flag)
        assert second.returncode == 3 and "already runs" in second.stderr
        assert kubectl("get", "nodes"), "the first one is not disturbed"

        fault = vknode("dev", "fault", "pool", "az2", "--for", "0.5s", *flag)
        assert fault.returncode == 0, fault.stderr
        assert "pool az2 is gone" in fault.stdout and "pool az2 is back" in fault.stdout
        wrong = vknode("dev", "fault", "zone", "az9", "--for", "1s", *flag)
        assert wrong.returncode == 1 and "az1, az2" in wrong.stderr

        stopped = vknode("dev", "stop", *flag)
        assert stopped.returncode == 0, stopped.stderr
        assert running.process.wait(120) == 0, running.text()
        assert sorted(one.name for one in running.state.path.iterdir()) == ["lock", "logs"]
        assert vknode("dev", "status", *flag).returncode == 1


@pytest.mark.cluster
@CLUSTER
def test_a_crash_is_said_and_costs_the_exit_status(
    short_path: Path, control_plane_programs: dict[str, Path]
) -> None:
    with dev(short_path, "--runtime", "sim", "--zones", "1", "--cells-per-zone", "1") as running:
        running.wait_for("Ctrl-C")
        record = running.state.load()
        assert record is not None
        agent = next(one for one in record.processes if one.name == "agent")
        os.kill(agent.pid, signal.SIGKILL)
        running.wait_for("agent was killed by SIGKILL", 60)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(120) == 1


@pytest.mark.cluster
@CLUSTER
@pytest.mark.containerd
def test_stop_clears_what_a_killed_cluster_left(
    short_path: Path, control_plane_programs: dict[str, Path]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("containerd needs root: run the tests as root")
    try:
        require(CONTAINERD)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    with dev(short_path, "--zones", "1", "--cells-per-zone", "1") as running:
        running.wait_for("Ctrl-C")
        kubectl = Kubectl(
            control_plane_programs["kubectl"], running.state.kubeconfig, short_path / "cache"
        )
        kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=120s", timeout=150)
        kubectl("run", "web", "--image=vknode.dev/web:v1")
        kubectl("wait", "pod", "web", "--for=condition=Ready", "--timeout=120s", timeout=150)
        record = running.state.load()
        assert record is not None and record.zones

        running.process.kill()
        running.process.wait()
        until(lambda: not any(one.alive() for one in record.processes))
        assert mounts_below(running.state.path), "a container's mounts outlive a SIGKILL"

        status = vknode("dev", "status", "--state-dir", str(running.state.path))
        assert "vknode dev stop" in status.stderr
        stopped = vknode("dev", "stop", "--state-dir", str(running.state.path))
        assert stopped.returncode == 0, stopped.stderr
        assert_gone(running.state, record)


def assert_gone(state: StateDir, record: RunRecord) -> None:
    assert mounts_below(state.path) == []
    for zone in record.zones:
        assert not Path(f"/sys/class/net/{zone.bridge}").exists()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    assert record.firewall_mark not in rules
    assert sorted(one.name for one in state.path.iterdir()) == ["lock", "logs"]
    ours = str(state.path).encode()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert ours not in cmdline.read_bytes(), cmdline


def test_without_root_the_simulated_runtime_is_offered() -> None:
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", *VKNODE]
        readable = subprocess.run([*command, "--version"], capture_output=True, check=False)
        if readable.returncode != 0:
            pytest.skip("this checkout is not readable for another user: chmod it, or run as one")
    else:
        command = [*VKNODE]
    done = subprocess.run(
        [*command, "dev", "--state-dir", "/tmp/nobody-makes-this"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "root" in done.stderr and "--runtime sim" in done.stderr
    assert not Path("/tmp/nobody-makes-this").exists()


@pytest.mark.cluster
@CLUSTER
def test_a_port_in_use_starts_nothing(
    short_path: Path, control_plane_programs: dict[str, Path]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        state = short_path / "s"
        done = vknode(
            "dev", "--runtime", "sim", "--apiserver-port", port, "--state-dir", str(state)
        )
    assert done.returncode == 3 and f"port {port}" in done.stderr
    assert not (state / "run").exists() and not (state / "run.json").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("2m", 120.0), ("1h1m1s", 3661.0), ("90", 90.0)]
)
def test_durations(text: str, seconds: float) -> None:
    from vknode.cli.dev_options import Duration

    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "1x", "m5", "1s1m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    done = vknode("dev", "fault", "agent", "--for", text)
    assert done.returncode == 2 and "60s, 2m or 1h30m" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cell-capacity", "cpu=8"], "memory is missing"),
        (["--cell-capacity", "cpu=-1,memory=1Gi,pods=9"], "'-1' is no quantity"),
        (["--sim-config", "SIM"], "unknown key 'latencies'"),
        (["--runtime", "cri", "--sim-config", "SIM"], "--sim-config is for --runtime sim"),
    ],
)
def test_what_pools_would_refuse_is_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    wrong = tmp_path / "sim.yaml"
    wrong.write_text("latencies: {}\n")
    state = tmp_path / "s"
    given = [str(wrong) if one == "SIM" else one for one in arguments]
    ran = vknode("dev", "--runtime", "sim", *given, "--state-dir", str(state))
    assert ran.returncode == 2
    assert named in ran.stderr
    assert not state.exists()
