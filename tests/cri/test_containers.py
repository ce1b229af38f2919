"""Containers on a real containerd: what a Pod's author would notice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from tests.cri.containerds import Containerd
from tests.cri.harness import PATIENCE, Harness, add, pod
from vknode.pool.runtimes.base import LogOptions
from vknode.pool.runtimes.cri import containers
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import ContainerExited, Failure, ObservedState, SandboxDied
from vknode.pool.v1 import spec_pb2

pytestmark = pytest.mark.containerd


async def test_the_runtime_says_what_it_and_its_host_are(harness: Harness) -> None:
    assert harness.info.scheme == "containerd"
    assert harness.info.version[0].isdigit()
    node = harness.info.node
    assert node.container_runtime_version == f"containerd://{harness.info.version}"
    assert node.operating_system == "linux" and node.kernel_version and node.boot_id


async def test_a_container_runs_prints_and_ends_with_its_code(harness: Harness) -> None:
    exit_, log = await harness.run(pod("echo out", "echo err >&2", "exit 7"))
    assert (exit_.exit_code, exit_.reason) == (7, "Error")
    assert sorted(log.splitlines()) == ["err", "out"]
    assert 0 < exit_.started_at <= exit_.finished_at


async def test_success_is_told_as_completed_with_the_message_it_left(harness: Harness) -> None:
    exit_, _ = await harness.run(pod("printf done > /dev/termination-log"))
    assert (exit_.exit_code, exit_.reason, exit_.message) == (0, "Completed", "done")


async def test_failure_falls_back_to_the_logs_end_where_asked(harness: Harness) -> None:
    spec = pod("echo first", "echo why", "exit 3")
    spec.containers[0].termination_message_fallback_to_logs = True
    exit_, _ = await harness.run(spec)
    assert exit_.message == "first\nwhy\n"


async def test_the_pod_sees_its_name_its_ip_and_its_environment(harness: Harness) -> None:
    spec = pod('echo "$(hostname) $MY_IP $LATER"', "cat /etc/hosts", "cat /etc/resolv.conf")
    spec.network.domainname = "sub.default.svc.cluster.local"
    spec.network.dns.CopyFrom(
        spec_pb2.DnsConfig(servers=["10.96.0.10"], searches=["svc.local"], options=["ndots:5"])
    )
    spec.network.host_aliases.add(ip="1.2.3.4", hostnames=["one", "two"])
    spec.pod_ip_token = "@@ip@@"
    env = spec.containers[0].env
    env.add(name="LATER", value="early")
    env.add(name="MY_IP", value="<@@ip@@>")
    env.add(name="LATER", value="late")
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    log = await harness.log(ref)
    ip = sandbox.ips[0]
    assert log.splitlines()[0] == f"web <{ip}> late"
    assert f"{ip}\tweb.sub.default.svc.cluster.local\tweb\n" in log
    assert "1.2.3.4\tone\ttwo\n" in log
    assert "nameserver 10.96.0.10" in log and "search svc.local" in log and "ndots:5" in log


async def test_users_groups_and_privileges_are_as_asked(harness: Harness) -> None:
    spec = pod(
        "id",
        "grep -E 'NoNewPrivs|CapEff|Seccomp:' /proc/self/status",
        "touch /x && echo writable || echo read-only",
    )
    spec.security.fs_group = 2000
    spec.security.supplemental_groups.append(3000)
    security = spec.containers[0].security
    security.run_as_user, security.run_as_group = 1000, 1001
    security.read_only_root_filesystem = True
    security.allow_privilege_escalation = False
    security.capabilities_drop.append("ALL")
    security.seccomp.type = spec_pb2.SecurityProfile.TYPE_RUNTIME_DEFAULT
    _, log = await harness.run(spec)
    assert "uid=1000 gid=1001 groups=1001,2000,3000" in log
    assert "NoNewPrivs:\t1" in log
    assert "CapEff:\t0000000000000000" in log
    assert "Seccomp:\t2" in log
    assert "read-only" in log.splitlines()


async def test_capabilities_are_added_and_proc_is_masked(harness: Harness) -> None:
    spec = pod(
        "grep CapEff /proc/self/status",
        "ls /sys/firmware | wc -l",
        "grep ' /proc/sys ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1",
    )
    spec.containers[0].security.capabilities_drop.append("ALL")
    spec.containers[0].security.capabilities_add.append("NET_ADMIN")
    _, log = await harness.run(spec)
    assert log.split() == ["CapEff:", f"{1 << 12:016x}", "0", "ro"]


async def test_a_root_image_is_refused_where_the_pod_says_non_root(harness: Harness) -> None:
    spec = pod()
    spec.containers[0].security.run_as_non_root = True
    sandbox = await harness.runtime.run_sandbox(spec, 0)
    with pytest.raises(Failure) as refused:
        await harness.start_in(spec, sandbox, spec.containers[0])
    assert refused.value.reason == "CreateContainerConfigError"
    assert "container has runAsNonRoot and image will run as root" in refused.value.message


async def test_a_memory_limit_kills_and_says_so(harness: Harness) -> None:
    spec = pod("head -c 200m /dev/zero | tail -c 200m > /dev/null; sleep 1; tail /dev/zero")
    spec.containers[0].resources.limits["memory"] = "16Mi"
    exit_, _ = await harness.run(spec)
    assert (exit_.exit_code, exit_.reason) == (137, "OOMKilled")


async def test_cpu_and_memory_become_cgroup_settings(harness: Harness) -> None:
    spec = pod(
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares"
        " /sys/fs/cgroup/memory/memory.limit_in_bytes /proc/self/oom_score_adj"
    )
    resources = spec.containers[0].resources
    resources.limits.update({"cpu": "500m", "memory": "64Mi"})
    resources.requests.update({"cpu": "250m", "memory": "32Mi"})
    _, log = await harness.run(spec)
    quota, shares, memory, score = map(int, log.split())
    assert (quota, shares, memory) == (50_000, 256, 64 << 20)
    assert 900 < score < 1000


async def test_a_stop_signals_first_and_kills_after_the_grace(harness: Harness) -> None:
    polite = pod("trap 'echo bye; exit 5' TERM", "echo up", "while :; do sleep 0.05; done")
    _, ref = await harness.start(polite)
    await harness.says(ref, "up")
    await harness.runtime.stop_container(ref, 60)
    exit_ = await harness.exit_of(ref)
    assert exit_.exit_code == 5
    deaf = pod("trap '' TERM", "echo up", "while :; do sleep 0.05; done")
    _, ref = await harness.start(deaf)
    await harness.says(ref, "up")
    await harness.runtime.stop_container(ref, 1)
    assert (await harness.exit_of(ref)).exit_code == 137
    await harness.runtime.stop_container(ref, 1)  # ended: no error


async def test_a_program_that_is_not_there_leaves_no_instance(harness: Harness) -> None:
    spec = pod()
    spec.containers[0].command[:] = ["/no/such/program"]
    sandbox = await harness.runtime.run_sandbox(spec, 0)
    with pytest.raises(Failure) as refused:
        await harness.start_in(spec, sandbox, spec.containers[0])
    assert refused.value.reason == "RunContainerError"
    assert "/no/such/program" in refused.value.message
    (found,) = [s for s in await harness.runtime.inventory() if s.uid == spec.uid]
    assert found.containers == ()
    spec.containers[0].command[:] = ["sleep", "1000"]
    await harness.start_in(spec, sandbox, spec.containers[0])  # the same attempt again


async def test_containers_of_a_pod_share_its_network_and_hosts(harness: Harness) -> None:
    spec = pod("echo hello | nc -l -p 7000")
    add(spec, "until nc 127.0.0.1 7000 < /dev/null; do sleep 0.05; done", name="client")
    sandbox, _ = await harness.start(spec)
    ref = await harness.start_in(spec, sandbox, spec.containers[1])
    assert (await harness.exit_of(ref)).exit_code == 0
    assert await harness.log(ref) == "hello\n"


async def test_a_shared_process_namespace_shows_the_neighbours(harness: Harness) -> None:
    spec = pod("exec sleep 4321", share_process_namespace=True)
    add(spec, "until ps | grep -q '[s]leep 4321'; do sleep 0.05; done; echo seen", name="peer")
    sandbox, _ = await harness.start(spec)
    ref = await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(ref)
    assert await harness.log(ref) == "seen\n"


async def test_a_debug_container_joins_its_target(harness: Harness) -> None:
    spec = pod("exec sleep 4321")
    spec.ephemeral_containers.add(
        name="debug",
        image=spec.containers[0].image,
        image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
        command=["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"],
        target_container="main",
    )
    sandbox, _ = await harness.start(spec)
    ref = await harness.start_in(spec, sandbox, spec.ephemeral_containers[0])
    await harness.exit_of(ref)
    assert await harness.log(ref) == "sleep 4321 "


async def test_a_lost_pause_process_is_told(harness: Harness) -> None:
    sandbox, _ = await harness.start(pod())
    status = await harness.runtime._client.runtime.PodSandboxStatus(
        cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id, verbose=True)
    )
    os.kill(json.loads(status.info["info"])["pid"], signal.SIGKILL)
    died = await harness.event(SandboxDied)
    assert (died.uid, died.id) == (sandbox.uid, sandbox.id)


async def test_a_lost_sandbox_is_made_again_and_ended_instances_stay(harness: Harness) -> None:
    spec = pod("echo one; exit 1")
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    await harness.runtime.stop_sandbox(spec.uid)
    (found,) = await harness.runtime.inventory()
    assert not found.ready and found.containers[0].ref == ref
    again = await harness.runtime.run_sandbox(spec, 1)
    assert again.id != sandbox.id and again.attempt == 1
    second = await harness.start_in(spec, again, spec.containers[0], attempt=1)
    await harness.exit_of(second)
    (found,) = await harness.runtime.inventory()
    assert found.ready and [c.ref for c in found.containers] == [ref, second]
    assert await harness.log(ref) == "one\n"


async def test_everything_of_a_removed_sandbox_is_gone(harness: Harness) -> None:
    spec = pod()
    spec.volumes.add(name="ram").empty_dir.memory = True
    spec.volumes.add(name="limited").empty_dir.CopyFrom(
        spec_pb2.EmptyDir(memory=True, size_limit="1Mi")
    )
    spec.containers[0].mounts.add(volume="ram", path="/ram")
    spec.containers[0].mounts.add(volume="limited", path="/limited")
    await harness.start(spec)
    await harness.runtime.remove_sandbox(spec.uid)
    await harness.runtime.remove_sandbox(spec.uid)  # again: no error
    assert await harness.runtime.inventory() == []
    state = harness.options.state_dir
    assert not [p for p in state.rglob("*") if spec.uid in str(p)]
    assert spec.uid not in Path("/proc/self/mountinfo").read_text()


async def test_a_new_pool_process_finds_all_it_had(harness: Harness) -> None:
    long = pod(name="long")
    sandbox, running = await harness.start(long)
    short = pod("printf left > /dev/termination-log; exit 4", name="short")
    _, ended = await harness.start(short)
    exit_ = await harness.exit_of(ended)
    await harness.restart()
    by_uid = {found.uid: found for found in await harness.runtime.inventory()}
    assert set(by_uid) == {long.uid, short.uid}
    (one,) = by_uid[long.uid].containers
    assert by_uid[long.uid].ips == sandbox.ips and by_uid[long.uid].ready
    assert one.ref == running and one.state is ObservedState.RUNNING
    assert one.image.reference == "docker.io/library/busybox:1.36"
    (other,) = by_uid[short.uid].containers
    assert (other.ref, other.state, other.exit) == (ended, ObservedState.EXITED, exit_)
    await harness.runtime.stop_container(running, 0)
    assert (await harness.exit_of(running)).exit_code == 137


async def test_another_pools_sandboxes_are_not_ours(
    harness: Harness, shared_containerd: Containerd, short_path: Path
) -> None:
    other = Harness(shared_containerd.socket, short_path / "other", "somebody-else")
    await other.connect()
    _, ref = await other.start(pod("exit 0"))
    await other.exit_of(ref)
    assert await harness.runtime.inventory() == []
    mine, _ = await harness.run(pod("exit 9"))
    assert mine.exit_code == 9
    assert ref.id not in {e.ref.id for e in harness.events if isinstance(e, ContainerExited)}
    await other.clear()
    await other.disconnect()


async def test_answers_lost_on_the_way_do_no_harm(harness: Harness) -> None:
    spec = pod()
    first, ref = await harness.start(spec)
    # As after a crash between a call and its record: the same attempts are asked again.
    second = await harness.runtime.run_sandbox(spec, 0)
    assert second.id != first.id
    again = await harness.start_in(spec, second, spec.containers[0])
    assert again.id != ref.id
    (found,) = await harness.runtime.inventory()
    assert (found.id, [c.ref for c in found.containers]) == (second.id, [again])


async def test_usage_is_counted(harness: Harness) -> None:
    spec = pod("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000")
    _, ref = await harness.start(spec)
    await harness.says(ref, "done")
    (stats,) = await harness.runtime.stats([spec.uid])
    assert (stats.uid, stats.name, stats.cell) == (spec.uid, "web", "z-a")
    (container,) = stats.containers
    assert container.name == "main" and container.usage.cpu_nanoseconds > 10_000_000
    assert container.usage.memory_working_set_bytes > 0
    assert container.started_at.seconds > 0 and container.logs_bytes > 0


@pytest.mark.parametrize("restarted", [False, True])
async def test_usage_is_told_of_containers_that_run(harness: Harness, restarted: bool) -> None:
    spec = pod("exit 0")
    add(spec, "sleep 1000", name="other")
    sandbox, ref = await harness.start(spec)
    await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(ref)
    if restarted:
        await harness.restart()
        await harness.runtime.inventory()
    (stats,) = await harness.runtime.stats([spec.uid])
    assert [one.name for one in stats.containers] == ["other"]


async def test_a_cancelled_start_leaves_nothing_behind(harness: Harness) -> None:
    for wait in (0.0, 0.01, 0.03, 0.06):
        spec = pod()
        making = asyncio.create_task(harness.runtime.run_sandbox(spec, 0))
        await asyncio.sleep(wait)
        ended = making.done()  # a busy machine's wait may outlast the start itself
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        assert making.cancelled() or ended
        await harness.runtime.remove_sandbox(spec.uid)
        assert await harness.runtime.inventory() == []
        assert spec.uid not in {p.name for p in harness.options.state_dir.rglob("*")}
    # And the same attempt can be asked again while the given-up one is still being made.
    spec = pod()
    making = asyncio.create_task(harness.runtime.run_sandbox(spec, 0))
    await asyncio.sleep(0.01)
    making.cancel()
    sandbox = await harness.runtime.run_sandbox(spec, 0)
    (found,) = await harness.runtime.inventory()
    assert found.id == sandbox.id


async def test_a_log_of_100_megabytes_is_followed_to_its_last_byte(harness: Harness) -> None:
    lines = 1_000_000
    # containerd's shim drops what the disk has not taken 2 s after the end of a container.
    spec = pod(f"yes {'x' * 99} | head -n {lines}; echo end; sleep 5")
    _, ref = await harness.start(spec)
    ended = asyncio.Event()
    wanted = hashlib.sha256((b"x" * 99 + b"\n") * lines + b"end\n")
    read, size = hashlib.sha256(), 0

    async def until_the_end() -> None:
        await harness.exit_of(ref)
        ended.set()

    ending = asyncio.create_task(until_the_end())
    async with asyncio.timeout(2 * PATIENCE):
        async for piece in harness.runtime.logs(ref, LogOptions(follow=True), ended):
            assert len(piece) <= 65536
            read.update(piece)
            size += len(piece)
    await ending
    assert size == 100 * lines + 4
    assert read.hexdigest() == wanted.hexdigest()


async def test_a_shorter_grace_overtakes_a_longer_one(harness: Harness) -> None:
    _, ref = await harness.start(pod("trap '' TERM", "echo up", "while :; do sleep 0.05; done"))
    await harness.says(ref, "up")
    patient = asyncio.create_task(harness.runtime.stop_container(ref, 600))
    await asyncio.sleep(0.2)
    assert not patient.done()
    async with asyncio.timeout(PATIENCE):  # it has ten minutes otherwise
        await harness.runtime.stop_container(ref, 0)
        await patient
    assert (await harness.exit_of(ref)).exit_code == 137


async def test_a_termination_message_has_its_limits(harness: Harness) -> None:
    spec = pod("yes 0123456789 | head -c 10000 > /dev/termination-log", "exit 1")
    exit_, _ = await harness.run(spec)
    assert exit_.message == ("0123456789\n" * 1000)[:10000][-4096:]
    spec = pod("i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done", "exit 1")
    spec.containers[0].termination_message_fallback_to_logs = True
    exit_, _ = await harness.run(spec)
    assert exit_.message == "".join(f"line {i}\n" for i in range(120, 200))
    spec = pod("i=0; while [ $i -lt 80 ]; do printf '%0100d\\n' $i; i=$((i+1)); done", "exit 1")
    spec.containers[0].termination_message_fallback_to_logs = True
    exit_, _ = await harness.run(spec)
    assert exit_.message == "".join(f"{i:0100}\n" for i in range(80))[-2048:]
    # A success says only what it wrote itself.
    spec = pod("echo log", "exit 0")
    spec.containers[0].termination_message_fallback_to_logs = True
    exit_, _ = await harness.run(spec)
    assert exit_.message == ""


async def test_a_container_killed_for_its_memory_says_so_whatever_its_shell_says(
    harness: Harness,
) -> None:
    spec = pod("tail /dev/zero; echo $?; exit 3")
    spec.containers[0].resources.limits["memory"] = "16Mi"
    exit_, _ = await harness.run(spec)
    assert (exit_.exit_code, exit_.reason) == (3, "OOMKilled")


def slowly(harness: Harness, monkeypatch: pytest.MonkeyPatch, *, removals: int) -> list[int]:
    """Every start of a container is given up although it comes to be, and so many removals
    before they are begun. Returns how many of these are left."""
    client = harness.runtime._client
    call, left = client.call, [removals]

    async def slow(reason: str, pending: Awaitable[Any]) -> Any:
        if reason == "RemoveContainer" and left[0]:
            left[0] -= 1
            pending.cancel()  # type: ignore[attr-defined]  # a call of grpc
            raise Failure(reason, "did not answer in time")
        answer = await call(reason, pending)
        if reason == "RunContainerError":
            raise Failure(reason, "did not answer in time")
        return answer

    monkeypatch.setattr(client, "call", slow)
    return left


async def test_a_start_that_was_given_up_never_runs_beside_the_next(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is so slow that the start and the removal after it are given up."""
    spec = pod("sleep 1000")
    sandbox = await harness.runtime.run_sandbox(spec, 0)
    client, call = harness.runtime._client, harness.runtime._client.call
    removals = slowly(harness, monkeypatch, removals=2)
    with pytest.raises(Failure) as failed:
        await harness.start_in(spec, sandbox, spec.containers[0], 0)
    assert failed.value.reason == "RunContainerError"
    with pytest.raises(Failure) as failed:
        await harness.start_in(spec, sandbox, spec.containers[0], 1)
    assert failed.value.message == ("an earlier instance cannot be removed: did not answer in time")
    (found,) = await harness.runtime.inventory()
    assert [c.ref.attempt for c in found.containers] == [0]
    assert removals == [0]
    monkeypatch.setattr(client, "call", call)
    ref = await harness.start_in(spec, sandbox, spec.containers[0], 1)
    (found,) = await harness.runtime.inventory()
    assert [c.ref for c in found.containers] == [ref]
    (stats,) = await harness.runtime.stats([spec.uid])
    assert len(stats.containers) == 1


async def test_a_start_that_was_given_up_ends_where_no_other_follows(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "REMOVE_AGAIN", 0.01)
    spec = pod("sleep 1000")
    sandbox = await harness.runtime.run_sandbox(spec, 0)
    left = slowly(harness, monkeypatch, removals=3)
    with pytest.raises(Failure):
        await harness.start_in(spec, sandbox, spec.containers[0], 0)
    async with asyncio.timeout(PATIENCE):
        while (await harness.runtime.inventory())[0].containers:
            await asyncio.sleep(0.01)
    assert left == [0]
