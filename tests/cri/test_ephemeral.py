"""Debug containers: beside what runs, with a view of its processes."""

from __future__ import annotations

import pytest

from tests.cri.harness import BUSYBOX, PATIENCE, Harness, add, pod
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

pytestmark = pytest.mark.containerd

_PS = "ps -o args; id -u; echo seen"


def debug(spec: spec_pb2.SandboxSpec, script: str, target: str = "") -> spec_pb2.Container:
    return spec.ephemeral_containers.add(
        name="debugger",
        image=BUSYBOX,
        image_pull_policy=spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
        command=["sh", "-c", script],
        target_container=target,
    )


async def test_it_sees_the_processes_of_its_target_and_of_no_other(harness: Harness) -> None:
    spec = pod("sleep 1111")
    other = add(spec, "sleep 2222", name="other")
    sandbox, _ = await harness.start(spec)
    await harness.start_in(spec, sandbox, other)
    container = debug(spec, f"cat /proc/1/cmdline | tr '\\0' ' '; {_PS}", "main")
    ref = await harness.start_in(spec, sandbox, container)
    await harness.exit_of(ref)
    log = await harness.log(ref)
    assert "sleep 1111" in log and "sleep 2222" not in log and "seen" in log


async def test_without_a_target_it_sees_only_itself(harness: Harness) -> None:
    spec = pod("sleep 1111")
    sandbox, _ = await harness.start(spec)
    ref = await harness.start_in(spec, sandbox, debug(spec, _PS))
    await harness.exit_of(ref)
    log = await harness.log(ref)
    assert "sleep 1111" not in log and "seen" in log


async def test_where_all_processes_are_shared_a_target_changes_nothing(harness: Harness) -> None:
    spec = pod("sleep 1111", share_process_namespace=True)
    other = add(spec, "sleep 2222", name="other")
    sandbox, _ = await harness.start(spec)
    await harness.start_in(spec, sandbox, other)
    ref = await harness.start_in(spec, sandbox, debug(spec, _PS, "main"))
    await harness.exit_of(ref)
    log = await harness.log(ref)
    assert "sleep 1111" in log and "sleep 2222" in log and "/pause" in log


async def test_its_target_is_the_newest_instance(harness: Harness) -> None:
    spec = pod("sleep 1111")
    sandbox, first = await harness.start(spec)
    await harness.runtime.stop_container(first, 0)
    await harness.exit_of(first)
    spec.containers[0].command[:] = ["sleep", "3333"]
    await harness.start_in(spec, sandbox, spec.containers[0], attempt=1)
    await harness.restart()  # and a new pool process finds it, too
    await harness.runtime.inventory()
    ref = await harness.start_in(spec, sandbox, debug(spec, _PS, "main"))
    await harness.exit_of(ref)
    assert "sleep 3333" in await harness.log(ref)


async def test_a_target_that_never_ran_is_said(harness: Harness) -> None:
    spec = pod()
    sandbox, _ = await harness.start(spec)
    with pytest.raises(Failure) as failed:
        await harness.start_in(spec, sandbox, debug(spec, _PS, "nobody"))
    assert failed.value.reason == "CreateContainerConfigError"
    assert failed.value.message == "unable to find target container nobody"


async def test_it_is_adopted_after_a_restart_of_the_pool(harness: Harness) -> None:
    spec = pod()
    sandbox, main = await harness.start(spec)
    ref = await harness.start_in(spec, sandbox, debug(spec, "sleep 1000", "main"))
    await harness.restart()
    (found,) = await harness.runtime.inventory()
    assert {container.ref for container in found.containers} == {main, ref}
    await harness.runtime.stop_container(ref, 0)
    assert (await harness.exit_of(ref)).exit_code == 137
    code, _ = await harness.runtime.exec_sync(main, ["true"], PATIENCE)
    assert code == 0, "its target runs on"
