"""What a Pod may do to its host and to itself, as a kubelet lets it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cri.containerds import Containerd
from tests.cri.harness import Harness, add, pod
from vknode.pool import sysctls
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_NO_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
}


@pytest.fixture
async def permissive(
    harness: Harness, shared_containerd: Containerd, short_path: Path
) -> AsyncIterator[Harness]:
    """A pool whose owner allows everything; the sandboxes are `harness`'s."""
    profiles = short_path / "seccomp"
    (profiles / "team").mkdir(parents=True)
    (profiles / "team" / "no-mkdir.json").write_text(json.dumps(_NO_MKDIR))
    made = Harness(
        shared_containerd.socket,
        harness.options.state_dir,
        harness.options.pool,
        allow_privileged=True,
        allow_host_namespaces=True,
        unsafe_sysctls=("kernel.msg*", "net.core.somaxconn"),
        seccomp_dir=profiles,
    )
    await made.connect()
    yield made
    await made.disconnect()


def confined_by(spec: spec_pb2.SandboxSpec, profile: str) -> None:
    seccomp = spec.containers[0].security.seccomp
    seccomp.type, seccomp.localhost_profile = spec_pb2.SecurityProfile.TYPE_LOCALHOST, profile


@pytest.mark.containerd
async def test_a_seccomp_profile_of_the_host_confines(permissive: Harness) -> None:
    spec = pod("mkdir /new 2>&1; touch /file && echo touched")
    confined_by(spec, "team/no-mkdir.json")
    assert permissive.runtime.problems(spec) == []
    _, log = await permissive.run(spec)
    assert log.splitlines() == [
        "mkdir: can't create directory '/new': Operation not permitted",
        "touched",
    ]


@pytest.mark.containerd
async def test_a_missing_seccomp_profile_is_told(permissive: Harness) -> None:
    spec = pod()
    confined_by(spec, "none.json")
    sandbox = await permissive.runtime.run_sandbox(spec, 0)
    with pytest.raises(Failure, match=r"none\.json") as failed:
        await permissive.start_in(spec, sandbox, spec.containers[0])
    assert failed.value.reason == "CreateContainerError"


@pytest.mark.containerd
async def test_seccomp_profiles_need_a_folder_and_stay_in_it(
    harness: Harness, permissive: Harness
) -> None:
    spec = pod()
    confined_by(spec, "team/no-mkdir.json")
    assert [p.path for p in harness.runtime.problems(spec)] == ["containers[0].security.seccomp"]
    for wrong in ("../outside.json", "/etc/profile.json", ""):
        confined_by(spec, wrong)
        found = permissive.runtime.problems(spec)
        assert [p.path for p in found] == ["containers[0].security.seccomp"]


@pytest.mark.containerd
async def test_kernel_parameters_are_the_pods_own(permissive: Harness) -> None:
    names = {
        "net.ipv4.ip_local_port_range": "20000 30000",
        "kernel.shm_rmid_forced": "1",
        "kernel.msgmax": "16384",
    }
    files = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in names)
    spec = pod(f"cat {files}")
    spec.security.sysctls.update(names)
    assert permissive.runtime.problems(spec) == []
    _, log = await permissive.run(spec)
    assert log.split("\n") == ["20000\t30000", "1", "16384", ""]
    assert Path("/proc/sys/kernel/msgmax").read_text().strip() != "16384"


@pytest.mark.containerd
async def test_a_privileged_container_has_all_devices_and_rights(permissive: Harness) -> None:
    script = "grep CapEff /proc/self/status; ls /dev; ls /sys/firmware | wc -l; touch /proc/sys/x"
    spec = pod(script)
    _, confined = await permissive.run(spec)
    spec = pod(script)
    spec.containers[0].security.privileged = True
    assert permissive.runtime.problems(spec) == []
    _, free = await permissive.run(spec)
    own, host = set(confined.split()), {path.name for path in Path("/dev").iterdir()}
    assert len(set(free.split()) & host) > len(own & host)
    rights = next(line for line in free.splitlines() if "CapEff" in line)
    ours = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line
    )
    assert int(rights.split()[1], 16) == int(ours.split()[1], 16)


@pytest.mark.containerd
async def test_processes_of_the_host_are_seen_only_where_that_is_allowed(
    permissive: Harness,
) -> None:
    spec = pod("ls /proc | grep -c '^[0-9]*$'; ls -l /proc/self/ns/ipc /proc/self/ns/pid")
    spec.host_pid = spec.host_ipc = True
    _, log = await permissive.run(spec)
    own = {name: (Path("/proc/self/ns") / name).readlink().name for name in ("pid", "ipc")}
    assert all(name in log for name in own.values())


@pytest.mark.containerd
async def test_a_host_name_with_its_domain_must_fit(harness: Harness) -> None:
    spec = pod("hostname; cat /etc/hostname")
    spec.network.hostname_as_fqdn = True
    spec.network.domainname = "sub.default.svc.cluster.local"
    _, log = await harness.run(spec)
    assert log.split() == ["web.sub.default.svc.cluster.local"] * 2
    long = pod()
    long.network.CopyFrom(spec.network)
    long.network.hostname = "a" * 40
    with pytest.raises(Failure) as failed:
        await harness.runtime.run_sandbox(long, 0)
    assert (failed.value.reason, failed.value.message) == (
        "FailedCreatePodSandBox",
        "failed to construct FQDN from pod hostname and cluster domain, FQDN "
        f"{'a' * 40}.sub.default.svc.cluster.local is too long (64 characters is the max, 70 "
        "characters requested)",
    )


@pytest.mark.containerd
async def test_a_container_may_bring_its_own_hosts_file(harness: Harness) -> None:
    spec = pod("cat /etc/hosts")
    add(spec, "head -n 1 /etc/hosts", name="other")
    spec.volumes.add(name="hosts").files.files.add(path="hosts", content=b"mine\n", mode=0o644)
    spec.containers[0].mounts.add(volume="hosts", path="/etc/hosts", sub_path="hosts")
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    assert await harness.log(ref) == "mine\n"
    other = await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(other)
    assert await harness.log(other) == "# Kubernetes-managed hosts file.\n"


@pytest.mark.parametrize(
    ("name", "shares", "problem"),
    [
        ("net.ipv4.tcp_syncookies", "", ""),
        ("net/ipv4/tcp_syncookies", "", ""),
        ("net.ipv4.tcp_notsent_lowat", "", ""),
        ("kernel.shm_rmid_forced", "network", ""),
        ("kernel.msgmax", "", ""),
        ("kernel.shm_rmid_forced", "ipc", '"kernel.shm_rmid_forced" not allowed with host IPC'),
        ("net.ipv4.tcp_rmem", "network", '"net.ipv4.tcp_rmem" not allowed with host Net'),
        ("kernel.sem", "", '"kernel.sem" not allowlisted'),
        ("kernel.ms", "", '"kernel.ms" not allowlisted'),
        ("vm.swappiness", "", '"vm.swappiness" not allowlisted'),
    ],
)
def test_which_kernel_parameters_are_allowed(name: str, shares: str, problem: str) -> None:
    found = sysctls.problem(
        name, ("kernel.msg*",), host_network=shares == "network", host_ipc=shares == "ipc"
    )
    assert found.startswith(f"forbidden sysctl: {problem}" if problem else "")
    assert bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("pattern", "fine"),
    [
        ("kernel.msg*", True),
        ("net.*", True),
        ("net/ipv4/*", True),
        ("kernel.sem", True),
        ("fs.mqueue.*", True),
        ("kernel.*", False),
        ("vm.swappiness", False),
        ("*", False),
        ("net.*.rmem", False),
    ],
)
def test_an_owner_can_only_allow_what_is_a_pods_own(pattern: str, fine: bool) -> None:
    assert (sysctls.bad_pattern(pattern) == "") is fine
