"""What of a newer spec counts for a sandbox that is there, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.world import make_spec
from vknode.pool.engine.newer import newer
from vknode.pool.v1 import spec_pb2


def changed(
    spec: spec_pb2.SandboxSpec, change: Callable[[spec_pb2.SandboxSpec], Any] = lambda s: None
) -> spec_pb2.SandboxSpec:
    copy = spec_pb2.SandboxSpec()
    copy.CopyFrom(spec)
    change(copy)
    return copy


def with_volumes() -> spec_pb2.SandboxSpec:
    spec = make_spec()
    for name in ("config", "token"):
        spec.volumes.add(name=name).files.files.add(path="a", content=b"1")
    return spec


def test_what_is_settled_stays_is_named_and_holds_nothing_up() -> None:
    spec = make_spec(mains=2)
    spec.runtime_handler = "kata"
    spec.network.dns.servers.append("10.0.0.10")
    spec.volumes.add(name="v").files.files.add(path="token", content=b"old")

    def change(new: spec_pb2.SandboxSpec) -> None:
        new.generation = 7
        new.labels["new"] = "yes"
        new.volumes[0].files.files[0].content = b"renewed"
        new.containers[0].resources.requests["cpu"] = "1"
        new.ephemeral_containers.add(name="debug", image="busybox")
        new.runtime_handler = ""
        new.network.dns.servers[:] = ["10.0.0.11"]
        new.network.hostname = "other"
        new.restart_policy = spec_pb2.RESTART_POLICY_NEVER
        new.containers[0].resources.limits["example.com/gpu"] = "1"
        new.containers[0].readiness_probe.period_seconds = 3
        new.containers[1].working_dir = "/x"
        new.volumes[0].files.sensitive = True

    def taken(new: spec_pb2.SandboxSpec) -> None:
        new.generation = 7
        new.labels["new"] = "yes"
        new.volumes[0].files.files[0].content = b"renewed"
        new.containers[0].resources.requests["cpu"] = "1"
        new.ephemeral_containers.add(name="debug", image="busybox")

    result, kept = newer(spec, changed(spec, change))
    assert result == changed(spec, taken)
    assert kept == [
        "runtime_handler",
        "network.hostname",
        "network.dns.servers",
        "restart_policy",
        "containers[0].resources.limits",
        "containers[0].readiness_probe",
        "containers[1].working_dir",
        "volumes[0].files.sensitive",
    ]


def test_a_volume_that_is_kept_stays_and_is_no_difference() -> None:
    spec = with_volumes()

    def change(new: spec_pb2.SandboxSpec) -> None:
        new.volumes[0].keep.reason = 'configmap "config" not found'
        new.volumes[1].files.files[0].content = b"2"

    result, kept = newer(spec, changed(spec, change))
    assert kept == []
    assert [volume.files.files[0].content for volume in result.volumes] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda s: s.volumes.add(name="more").empty_dir.SetInParent(), "volumes"),
        (lambda s: s.volumes.pop(), "volumes"),
        (lambda s: s.volumes[1].host_path.SetInParent(), "volumes[1].files"),
        (lambda s: s.containers.add(name="more", image="x"), "containers"),
        (lambda s: s.init_containers.add(name="more", image="x"), "init_containers"),
        (lambda s: setattr(s.containers[0], "name", "other"), "containers[0].name"),
    ],
)
def test_nothing_comes_or_goes_but_ephemeral_containers(
    change: Callable[[spec_pb2.SandboxSpec], Any], path: str
) -> None:
    spec = with_volumes()
    result, kept = newer(spec, changed(spec, change))
    assert result == spec
    assert path in kept


def test_ephemeral_containers_only_come() -> None:
    spec = make_spec()
    spec.ephemeral_containers.add(name="debug", image="busybox")

    def change(new: spec_pb2.SandboxSpec) -> None:
        new.ephemeral_containers[0].command.append("sh")
        new.ephemeral_containers.add(name="more", image="busybox")

    result, kept = newer(spec, changed(spec, change))
    assert [(one.name, list(one.command)) for one in result.ephemeral_containers] == [
        ("debug", []),
        ("more", []),
    ]
    assert kept == ["ephemeral_containers[0].command"]
    gone = changed(result, lambda new: new.ClearField("ephemeral_containers"))
    assert newer(result, gone) == (result, ["ephemeral_containers"])


def test_what_is_expanded_from_a_changed_environment_changes_with_it() -> None:
    spec = make_spec(inits=1)
    for container in (*spec.init_containers, *spec.containers):
        container.env.add(name="A", value="1")
        container.args.append("--a=1")
        container.mounts.add(volume="v", path="/v", sub_path="1")
    new = changed(spec)
    new.init_containers[0].args[0] = new.containers[0].args[0] = "--a=2"
    new.containers[0].mounts[0].sub_path = "2"
    assert newer(spec, new) == (
        spec,
        ["init_containers[0].args", "containers[0].args", "containers[0].mounts[0].sub_path"],
    )
    new.init_containers[0].env[0].value = new.containers[0].env[0].value = "2"
    assert newer(spec, new) == (new, [])
    unknown = changed(spec)
    unknown.containers[0].args[0] = "--a=$(A)"
    unknown.containers[0].config_error = 'configmap "c" not found'
    assert newer(spec, unknown) == (unknown, [])
    assert newer(unknown, spec) == (spec, [])


def test_words_that_stay_get_the_new_tokens() -> None:
    """An agent may choose other tokens for the Pod's IPs each time it translates."""
    spec = make_spec()
    spec.pod_ip_token = "@one@"
    spec.containers[0].env.add(name="IP", value="@one@")
    spec.containers[0].args.append("--ip=@one@")
    spec.volumes.add(name="v").empty_dir.SetInParent()
    spec.containers[0].mounts.add(volume="v", path="/v", sub_path="of/@one@")

    def change(new: spec_pb2.SandboxSpec) -> None:
        new.pod_ip_token = "@two@"
        new.containers[0].env[0].value = "@two@"
        new.containers[0].args[0] = "--ip=@two@"
        new.containers[0].mounts[-1].sub_path = "of/@two@"

    new = changed(spec, change)
    assert newer(spec, new) == (new, [])
    new.containers[0].args[0] = "--addr=@two@"
    result, kept = newer(spec, new)
    assert kept == ["containers[0].args"]
    assert list(result.containers[0].args) == ["--ip=@two@"]


def test_credentials_deadline_and_addresses_are_the_newest() -> None:
    spec = make_spec()
    spec.active_deadline_seconds = 60

    def change(new: spec_pb2.SandboxSpec) -> None:
        new.ClearField("active_deadline_seconds")
        new.registry_credentials.add(registry="example.com", username="u")
        new.host_ips.append("192.0.2.1")
        new.annotations["a"] = "b"

    new = changed(spec, change)
    assert newer(spec, new) == (new, [])
    back, kept = newer(new, spec)
    assert back == spec
    assert kept == []


_Change = Callable[[spec_pb2.SandboxSpec], Any]
_TAKEN: tuple[_Change, ...] = (
    lambda s: setattr(s, "generation", 9),
    lambda s: s.labels.update({"new": "yes"}),
    lambda s: s.annotations.clear(),
    lambda s: s.ClearField("active_deadline_seconds"),
    lambda s: setattr(s.containers[0], "image", "other:1"),
    lambda s: s.containers[1].env.add(name="A", value="b"),
    lambda s: setattr(s.containers[1], "config_error", "missing"),
    lambda s: s.containers[0].resources.limits.update({"memory": "1Gi"}),
    lambda s: s.resources.requests.update({"cpu": "2"}),
    lambda s: s.volumes[0].files.files.add(path="more", content=b"x"),
    lambda s: s.ephemeral_containers.add(name="debug", image="busybox"),
)
_SETTLED: tuple[_Change, ...] = (
    lambda s: setattr(s, "tenant", "other"),
    lambda s: setattr(s, "runtime_handler", "kata"),
    lambda s: s.network.dns.options.append("ndots:2"),
    lambda s: s.containers[0].command.append("more"),
    lambda s: s.containers[0].ports.add(container_port=80),
    lambda s: setattr(s.init_containers[0].security, "privileged", True),
    lambda s: s.containers[0].resources.requests.update({"example.com/gpu": "1"}),
    lambda s: setattr(s.volumes[0].files, "sensitive", True),
    lambda s: s.overhead.update({"cpu": "1"}),
)


@given(
    st.sets(st.integers(0, len(_TAKEN) - 1)),
    st.sets(st.integers(0, len(_SETTLED) - 1)),
    st.booleans(),
)
def test_what_is_taken_never_depends_on_what_stays(
    taken: set[int], settled: set[int], keeps: bool
) -> None:
    old = make_spec(inits=1, mains=2)
    old.annotations["a"] = "b"
    old.active_deadline_seconds = 60
    for name in ("v", "w"):
        old.volumes.add(name=name).files.files.add(path="a", content=b"1")
    wanted, new = changed(old), changed(old)
    for index in sorted(taken):
        _TAKEN[index](wanted)
        _TAKEN[index](new)
    for index in sorted(settled):
        _SETTLED[index](new)
    if keeps:
        new.volumes[1].keep.reason = "missing"
    result, kept = newer(old, new)
    assert result == wanted
    assert bool(kept) == bool(settled)
    assert newer(result, new) == (result, kept)
    assert newer(result, result) == (result, [])
