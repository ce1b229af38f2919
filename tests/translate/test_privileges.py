"""What a Pod may have of its host: nothing by itself, and each part by its own word only."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.translate.builders import NODE, Json, container_pod, pod, spec_of
from vknode.pool.v1 import spec_pb2
from vknode.translate.privileges import ALL_CAPABILITIES, COMMON, Allowed, closed

# Each thing that is closed: a Pod that wants it, the field's path, the words that open it.
WANTED: list[tuple[Json, str, Allowed]] = [
    (pod("hostNetwork: true"), "spec.hostNetwork", Allowed(host_network=True)),
    (pod("hostPID: true"), "spec.hostPID", Allowed(host_pid=True)),
    (pod("hostIPC: true"), "spec.hostIPC", Allowed(host_ipc=True)),
    (
        container_pod("securityContext: {privileged: true}"),
        "spec.containers[0].securityContext.privileged",
        Allowed(privileged=True),
    ),
    (
        pod("initContainers: [{name: i, image: i, securityContext: {privileged: true}}]"),
        "spec.initContainers[0].securityContext.privileged",
        Allowed(privileged=True),
    ),
    (
        pod("ephemeralContainers: [{name: e, image: i, securityContext: {privileged: true}}]"),
        "spec.ephemeralContainers[0].securityContext.privileged",
        Allowed(privileged=True),
    ),
    (
        container_pod("securityContext: {capabilities: {add: [KILL, cap_sys_admin]}}"),
        "spec.containers[0].securityContext.capabilities.add[1]",
        Allowed(capabilities=frozenset({"SYS_ADMIN"})),
    ),
    (
        container_pod("securityContext: {capabilities: {add: [ALL]}}"),
        "spec.containers[0].securityContext.capabilities.add[0]",
        Allowed(capabilities=frozenset({ALL_CAPABILITIES})),
    ),
    (
        pod("securityContext: {sysctls: [{name: kernel/msgmax, value: '1'}]}"),
        "spec.securityContext.sysctls[0]",
        Allowed(unsafe_sysctls=("kernel.msg*",)),
    ),
    (
        pod("securityContext: {seccompProfile: {type: Unconfined}}"),
        "spec.securityContext.seccompProfile",
        Allowed(unconfined=True),
    ),
    (
        container_pod("securityContext: {appArmorProfile: {type: Unconfined}}"),
        "spec.containers[0].securityContext.appArmorProfile",
        Allowed(unconfined=True),
    ),
    (
        pod("volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /var/log/pods}}]"),
        "spec.volumes[1].hostPath",
        Allowed(host_paths=("/var/log",)),
    ),
]
EVERYTHING = Allowed(
    ("/",), True, True, True, True, frozenset({ALL_CAPABILITIES}), ("net.*", "kernel.msg*"), True
)


@pytest.mark.parametrize(("one", "path", "opened"), WANTED)
def test_each_is_closed_and_opened_by_its_own_word(one: Json, path: str, opened: Allowed) -> None:
    (found,) = closed(one, Allowed())
    assert found.path == path
    assert closed(one, opened) == []
    others = [word for _, _, word in WANTED if word != opened]
    for other in others:
        # ALL is every capability.
        if not (opened.capabilities and ALL_CAPABILITIES in other.capabilities):
            assert [one.path for one in closed(one, other)] == [path]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "hostNetwork: false",
        "shareProcessNamespace: true",
        "securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]}",
        "securityContext: {seccompProfile: {type: RuntimeDefault}}",
        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: p}}",
        "containers: [{name: c, image: i, securityContext: {privileged: false}}]",
        "containers: [{name: c, image: i, securityContext: {capabilities: {drop: [ALL]}}}]",
        "containers: [{name: c, image: i, securityContext: {capabilities: {add: [SYS_PTRACE]}}}]",
        "containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 80}]}]",
        "volumes: [{name: v, emptyDir: {}}]",
    ],
)
def test_what_reaches_no_host_is_open(spec: str) -> None:
    assert closed(pod(spec), Allowed()) == []


@pytest.mark.parametrize(
    "path", ["/var/logs", "/var", "/", "/var/log/../lib", "var/log", "/var/log/..", "//etc"]
)
def test_a_prefix_opens_what_lies_below_it_and_nothing_beside(path: str) -> None:
    one = pod({"volumes": [{"name": "h", "hostPath": {"path": path}}]})
    assert closed(one, Allowed(host_paths=("/var/log",)))


@pytest.mark.parametrize("path", ["/var/log", "/var/log/", "/var/log/pods/x", "//var/log"])
def test_the_prefix_itself_and_below(path: str) -> None:
    one = pod({"volumes": [{"name": "h", "hostPath": {"path": path}}]})
    assert closed(one, Allowed(host_paths=("/var/log/",))) == []


def test_a_forbidden_sysctl_has_a_kubelets_words() -> None:
    one = pod("securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}")
    (found,) = closed(one, Allowed())
    assert found.forbidden == 'forbidden sysctl: "kernel.msgmax" not allowlisted'


def allowed() -> st.SearchStrategy[Allowed]:
    words = [opened for _, _, opened in WANTED]
    return st.lists(st.sampled_from(words)).map(_sum)


def _sum(chosen: list[Allowed]) -> Allowed:
    total = Allowed()
    for one in chosen:
        total |= one
    return total


@given(allowed(), allowed(), st.sampled_from([one for one, _, _ in WANTED]))
def test_what_two_entries_allow_adds_up(first: Allowed, second: Allowed, one: Json) -> None:
    both = {found.path for found in closed(one, first | second)}
    assert both <= {found.path for found in closed(one, first)}
    assert both == {found.path for found in closed(one, second | first)}
    # One of them alone must open it: nothing comes of a mixture.
    separately = [bool(closed(one, allow)) for allow in (first, second)]
    assert bool(both) == all(separately)


def test_everything_opens_everything() -> None:
    for one, _, _ in WANTED:
        assert closed(one, EVERYTHING) == []
    assert not EVERYTHING.unconfined_by_default


SECCOMP = spec_pb2.SecurityProfile


@pytest.mark.parametrize(
    ("outer", "own", "wanted"),
    [
        (None, None, SECCOMP.TYPE_RUNTIME_DEFAULT),
        ("Unconfined", None, SECCOMP.TYPE_UNCONFINED),
        (None, "Unconfined", SECCOMP.TYPE_UNCONFINED),
        ("Unconfined", "RuntimeDefault", SECCOMP.TYPE_RUNTIME_DEFAULT),
    ],
)
def test_the_filter_is_the_default_unless_something_is_said(
    outer: str | None, own: str | None, wanted: int
) -> None:
    one = container_pod(
        "{}" if own is None else f"securityContext: {{seccompProfile: {{type: {own}}}}}"
    )
    if outer:
        one["spec"]["securityContext"] = {"seccompProfile": {"type": outer}}
    node = dataclasses.replace(NODE, seccomp_default=True)
    security = spec_of(one, node=node).containers[0].security
    assert security.seccomp.type == wanted
    if outer is own is None:
        assert not spec_of(one, node=NODE).containers[0].security.HasField("seccomp")


def test_a_privileged_container_has_no_filter_to_default_to() -> None:
    node = dataclasses.replace(NODE, seccomp_default=True)
    one: Any = spec_of(container_pod("securityContext: {privileged: true}"), node=node)
    assert not one.containers[0].security.HasField("seccomp")


def test_a_host_path_goes_to_the_pool_with_what_its_namespace_may_have() -> None:
    node = dataclasses.replace(NODE, host_paths=("/var/log", "/srv"))
    one = pod("volumes: [{name: h, hostPath: {path: /var/log/x}}]")
    (volume,) = spec_of(one, node=node).volumes
    assert list(volume.host_path.within) == ["/var/log", "/srv"]


def test_the_usual_capabilities_are_those_of_a_container_and_of_kubectl_debug() -> None:
    # CapEff of a container that asks for nothing, seen on containerd and on a kubelet, is
    # 0xa80425fb: 14 of them.
    assert len(COMMON) == 14 + 1
