"""Containers on a real containerd: what a Pod's author would notice."""

from __future__ import annotations

import pytest

from tests.cri.harness import Harness, pod

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
