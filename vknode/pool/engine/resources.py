"""The resources in a spec apart from the rest: what a resize changes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vknode.pool.quantity import milli
from vknode.pool.v1 import spec_pb2

RESIZABLE = ("cpu", "memory")


def containers(spec: spec_pb2.SandboxSpec) -> Iterator[spec_pb2.Container]:
    """Those whose resources are counted: init containers and main ones."""
    yield from spec.init_containers
    yield from spec.containers


def only_resources(spec: spec_pb2.SandboxSpec) -> spec_pb2.SandboxSpec:
    """A spec with nothing but names and resources in it."""
    out = spec_pb2.SandboxSpec()
    if spec.HasField("resources"):
        out.resources.CopyFrom(spec.resources)
    for source, target in (
        (spec.init_containers, out.init_containers),
        (spec.containers, out.containers),
    ):
        for container in source:
            copy = target.add(name=container.name)
            if container.HasField("resources"):
                copy.resources.CopyFrom(container.resources)
    return out


def with_resources(
    spec: spec_pb2.SandboxSpec, resources: spec_pb2.SandboxSpec
) -> spec_pb2.SandboxSpec:
    """A copy of `spec` with the resources of the other one."""
    out = spec_pb2.SandboxSpec()
    out.CopyFrom(spec)
    out.ClearField("resources")
    if resources.HasField("resources"):
        out.resources.CopyFrom(resources.resources)
    given = {c.name: c for c in containers(resources)}
    for container in containers(out):
        source = given.get(container.name)
        container.ClearField("resources")
        if source is not None and source.HasField("resources"):
            container.resources.CopyFrom(source.resources)
    return out


def effective(own: spec_pb2.Resources, pod: spec_pb2.Resources) -> spec_pb2.Resources:
    """What holds for one container: where it has no limit, the whole sandbox's is its own
    (pkg/kubelet/kuberuntime, containerResourcesFromRequirements)."""
    out = spec_pb2.Resources()
    out.CopyFrom(own)
    for name in RESIZABLE:
        if name in pod.limits and name not in own.limits:
            out.limits[name] = pod.limits[name]
    return out


def changed(old: spec_pb2.Resources, new: spec_pb2.Resources) -> set[str]:
    """The names of resources that differ in requests or limits, by amount."""
    found = set()
    for name in {*old.requests, *old.limits, *new.requests, *new.limits}:
        for before, after in ((old.requests, new.requests), (old.limits, new.limits)):
            if not _same(before.get(name), after.get(name)):
                found.add(name)
    return found


def differ(old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> bool:
    """Whether any of the resources differ by amount."""
    if changed(old.resources, new.resources):
        return True
    return any(
        changed(before.resources, after.resources)
        for before, after in zip(containers(old), containers(new), strict=True)
    )


def _same(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return one == other
    try:
        return milli(one) == milli(other)
    except ValueError:
        return False
