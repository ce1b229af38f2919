"""What a Pod may not ask of this runtime is said with its path; the rest is not refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from google.protobuf import text_format

from tests.cri.harness import add, pod
from vknode.pool.quantity import is_amount, milli, value
from vknode.pool.runtimes.cri.features import Features, _numbers
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.resources import Qos, linux_resources, oom_score_adj, qos
from vknode.pool.runtimes.cri.support import problems
from vknode.pool.v1 import spec_pb2

OPTIONS = CriOptions("/run/c.sock", Path("/var/lib/v"), "z", host_path_prefixes=("/srv/data",))
OLD = Features("containerd", (1, 6, 20), frozenset({"", "runc"}), memory_capacity=1 << 34)
NEW = Features(
    "containerd",
    (2, 4, 2),
    frozenset({"", "runc", "kata"}),
    frozenset({"", "runc"}),
    strict_groups=True,
    app_armor=True,
    se_linux=True,
    memory_capacity=1 << 34,
)


def parse(text: str) -> spec_pb2.SandboxSpec:
    spec = pod()
    text_format.Merge(text, spec)
    return spec


# Text that is merged into an ordinary Pod; the paths refused by an old and a new runtime.
CASES = [
    ("", [], []),
    ('runtime_handler: "kata"', ["runtime_handler"], []),
    ("network { host_network: true }", ["network.host_network"], ["network.host_network"]),
    ('network { name: "t1" }', ["network.name"], ["network.name"]),
    ("host_pid: true host_ipc: true", ["host_pid", "host_ipc"], ["host_pid", "host_ipc"]),
    ("security { supplemental_groups_strict: true }", ["security.supplemental_groups_strict"], []),
    (
        'security { sysctls { key: "kernel.msgmax" value: "1" } }',
        ['security.sysctls["kernel.msgmax"]'],
        ['security.sysctls["kernel.msgmax"]'],
    ),
    ('security { sysctls { key: "net.ipv4.tcp_syncookies" value: "1" } }', [], []),
    # Without SELinux (OLD) the runtime ignores labels.
    ('security { se_linux { level: "s0:c1" type: "container_t" } }', [], []),
    ('security { se_linux { type: "spc_t" } }', [], ["security.se_linux.type"]),
    ('security { se_linux { user: "root" } }', [], ["security.se_linux.user"]),
    (
        "security { app_armor { type: TYPE_RUNTIME_DEFAULT } }",
        ["security.app_armor"],
        [],
    ),
    (
        'volumes { name: "v" host_path { path: "/etc" } }',
        ["volumes[0].host_path"],
        ["volumes[0].host_path"],
    ),
    ('volumes { name: "v" host_path { path: "/srv/data/x" } }', [], []),
    (
        'volumes { name: "v" host_path { path: "/srv/data/../../etc" } }',
        ["volumes[0].host_path"],
        ["volumes[0].host_path"],
    ),
    ('volumes { name: "v" image {} }', ["volumes[0].image"], []),
    ('volumes { name: "v" }', ["volumes[0]"], ["volumes[0]"]),
    ('volumes { name: "v" empty_dir { size_limit: "1Gi" } }', [], []),
    (
        'volumes { name: "v" empty_dir { size_limit: "big" } }',
        ["volumes[0].empty_dir.size_limit"],
        ["volumes[0].empty_dir.size_limit"],
    ),
    ('volumes { name: "v" empty_dir { memory: true size_limit: "1Gi" } }', [], []),
    (
        'volumes { name: "v" files { files { path: "../x" } } }',
        ["volumes[0].files.files[0].path"],
        ["volumes[0].files.files[0].path"],
    ),
]
CONTAINER_CASES = [
    ("security { privileged: true }", ["security.privileged"], ["security.privileged"]),
    ('security { proc_mount: "Unmasked" }', ["security.proc_mount"], ["security.proc_mount"]),
    (
        'security { seccomp { type: TYPE_LOCALHOST localhost_profile: "p" } }',
        ["security.seccomp"],
        ["security.seccomp"],
    ),
    ("devices {}", ["devices"], ["devices"]),
    ('stop_signal: "SIGUSR1"', ["stop_signal"], []),
    ('stop_signal: "SIGTERM"', [], []),
    ('stop_signal: "SIGNOPE"', ["stop_signal"], ["stop_signal"]),
    ("ports { container_port: 80 host_port: 80 }", ["ports[0].host_port"], ["ports[0].host_port"]),
    ("ports { container_port: 80 }", [], []),
    ('mounts { volume: "x" path: "/x" }', ["mounts[0].volume"], ["mounts[0].volume"]),
    (
        'resources { limits { key: "hugepages-2Mi" value: "4Mi" } }',
        ['resources.limits["hugepages-2Mi"]'],
        ['resources.limits["hugepages-2Mi"]'],
    ),
    ('resources { limits { key: "ephemeral-storage" value: "1Gi" } }', [], []),
    ('resources { requests { key: "ephemeral-storage" value: "1Gi" } }', [], []),
    (
        'resources { limits { key: "cpu" value: "lots" } }',
        ['resources.limits["cpu"]'],
        ['resources.limits["cpu"]'],
    ),
]


@pytest.mark.parametrize(("text", "old", "new"), CASES)
def test_a_pod_is_refused_where_it_must(text: str, old: list[str], new: list[str]) -> None:
    spec = parse(text)
    assert [p.path for p in problems(spec, OPTIONS, OLD)] == old
    assert [p.path for p in problems(spec, OPTIONS, NEW)] == new
    assert all(len(p.message) > 10 for p in problems(spec, OPTIONS, OLD))


@pytest.mark.parametrize(("text", "old", "new"), CONTAINER_CASES)
def test_a_container_is_refused_where_it_must(text: str, old: list[str], new: list[str]) -> None:
    spec = pod()
    text_format.Merge(text, spec.containers[0])
    for features, paths in ((OLD, old), (NEW, new)):
        found = [p.path for p in problems(spec, OPTIONS, features)]
        assert found == [f"containers[0].{path}" for path in paths]


def test_limits_of_a_whole_pod_must_follow_from_its_containers_without_a_group() -> None:
    refused = ['resources.limits["memory"]']
    spec = pod()
    spec.resources.limits["memory"] = "1Gi"
    assert problems(spec, OPTIONS, OLD) == [], "the only container has the Pod's limit"
    add(spec, "sleep 1", name="second")
    assert [p.path for p in problems(spec, OPTIONS, OLD)] == refused
    for container in spec.containers:
        container.resources.limits["memory"] = "512Mi"
    assert problems(spec, OPTIONS, OLD) == []
    spec.containers[0].resources.limits["memory"] = "2Gi"
    assert [p.path for p in problems(spec, OPTIONS, OLD)] == refused
    assert problems(spec, OPTIONS, dataclasses.replace(OLD, pod_cgroups=True)) == []


@pytest.mark.parametrize(
    ("text", "whole", "thousandths"),
    [
        ("2", 2, 2000),
        ("100m", 1, 100),
        ("1.5Gi", 3 << 29, 3 * 500 << 30),
        ("1e3", 1000, 1000000),
        (".5", 1, 500),
        ("1n", 1, 1),
        ("12E", 12 * 10**18, 12 * 10**21),
        ("0", 0, 0),
    ],
)
def test_quantities_are_exact(text: str, whole: int, thousandths: int) -> None:
    assert (value(text), milli(text)) == (whole, thousandths)
    assert is_amount(text) and not is_amount(f"-1{text}")


@pytest.mark.parametrize("text", ["", "1 Gi", "GB", "1GB", "0x1", "1e", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        milli(text)
    assert not is_amount(text)


def test_classes_and_scores_are_the_kubelets() -> None:
    spec = pod()
    resources = spec.containers[0].resources
    assert qos(spec) is Qos.BEST_EFFORT
    assert oom_score_adj(spec, spec.containers[0], 1 << 34) == 1000
    assert linux_resources(spec, spec.containers[0], 1 << 34).cpu_shares == 2
    resources.requests["memory"] = "4Gi"
    assert qos(spec) is Qos.BURSTABLE
    assert oom_score_adj(spec, spec.containers[0], 1 << 34) == 750
    resources.limits.update({"memory": "4Gi", "cpu": "1"})
    assert qos(spec) is Qos.GUARANTEED
    assert oom_score_adj(spec, spec.containers[0], 1 << 34) == -997
    made = linux_resources(spec, spec.containers[0], 1 << 34)
    assert (made.cpu_shares, made.cpu_quota, made.cpu_period) == (1024, 100_000, 100_000)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("v2.1.0-rc.1", (2, 1, 0)),
        ("1.6.20~ds1", (1, 6, 20)),
        ("1.33.0", (1, 33, 0)),
        ("unknown", (0,)),
    ],
)
def test_versions_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert _numbers(text) == numbers
