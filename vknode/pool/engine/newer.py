"""A newer spec for a sandbox that is there: what of it counts, and what stays as it is. Pure.

A spec is translated anew by an agent that may have another configuration or version than the one
that asked for the sandbox. So whatever is settled when a sandbox (or its container) is made stays
as the sandbox has it, and never holds up what can change: a token that is renewed must arrive.

==================  ========================================================================
taken               from the newer spec, always (`_TAKEN`), and cpu and memory of resources
of a container      environment, image, config_error: its next instance has them (a new image
                    makes one at once). Command, arguments and sub paths are expanded from the
                    environment, so they go with it where that differs, or is or was unknown
of a volume         its files; `keep` leaves them as they are, too
ephemeral           further ones may come
everything else     stays; where it differs, its path is told
==================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from vknode.pool.engine.resources import RESIZABLE
from vknode.pool.v1 import spec_pb2

_TAKEN = (
    "generation",
    "labels",
    "annotations",
    "registry_credentials",
    "active_deadline_seconds",
    "host_ips",
)
_TOKENS = ("pod_ip_token", "pod_ips_token")
_GROUPS = ("init_containers", "containers", "ephemeral_containers")


def newer(
    old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec
) -> tuple[spec_pb2.SandboxSpec, list[str]]:
    """The spec that holds from now on, and the paths in `new` that were not taken."""
    spec = spec_pb2.SandboxSpec()
    spec.CopyFrom(old)
    for name in _TAKEN:
        _take(spec, new, name)
    _take_amounts(spec, new)
    to_new_tokens = _take_tokens(spec, old, new)
    given = {name: {one.name: one for one in getattr(new, name)} for name in _GROUPS}
    for group in _GROUPS:
        for container in getattr(spec, group):
            other = given[group].pop(container.name, None)
            _take_container(container, other, to_new_tokens)
    # Those that were not there before.
    spec.ephemeral_containers.extend(given["ephemeral_containers"].values())
    volumes = {volume.name: volume for volume in new.volumes}
    for volume in spec.volumes:
        _take_files(volume, volumes.get(volume.name))
    return spec, _differences(spec, _without_keep(spec, new), "")


def _take(into: Any, new: Any, name: str) -> None:
    """One field, as it is in `new`: absent, too. No message of its own."""
    field = new.DESCRIPTOR.fields_by_name[name]
    into.ClearField(name)
    if field.is_repeated:
        getattr(into, name).MergeFrom(getattr(new, name))
    elif not field.has_presence or new.HasField(name):
        setattr(into, name, getattr(new, name))


def _take_amounts(into: Any, new: Any) -> None:
    """Of a container or of a whole spec: what a resize changes."""
    for kind in ("requests", "limits"):
        amounts, others = getattr(into.resources, kind), getattr(new.resources, kind)
        for name in RESIZABLE:
            amounts.pop(name, None)
            if name in others:
                amounts[name] = others[name]
    if into.resources.requests or into.resources.limits:
        return
    into.ClearField("resources")
    if new.resources == spec_pb2.Resources() and new.HasField("resources"):
        into.resources.SetInParent()


_Words = Callable[[Sequence[str]], list[str]]


def _take_tokens(
    spec: spec_pb2.SandboxSpec, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec
) -> _Words:
    """The agent may choose other tokens each time it translates. The environment comes with the
    new ones; what is given back puts them into words that stay."""
    changed = []
    for name in _TOKENS:
        before, after = getattr(old, name), getattr(new, name)
        if after and before != after:
            setattr(spec, name, after)
            if before:
                changed.append((before, after))

    def with_new(words: Sequence[str]) -> list[str]:
        found = list(words)
        for before, after in changed:
            found = [word.replace(before, after) for word in found]
        return found

    return with_new


def _take_container(
    container: spec_pb2.Container, new: spec_pb2.Container | None, to_new_tokens: _Words
) -> None:
    for words in (container.command, container.args):
        words[:] = to_new_tokens(words)
    for mount in container.mounts:
        (mount.sub_path,) = to_new_tokens([mount.sub_path])
    if new is None:
        return
    before = [(one.name, *to_new_tokens([one.value]), one.file) for one in container.env]
    after = [(one.name, one.value, one.file) for one in new.env]
    if container.config_error or new.config_error or before != after:
        container.command[:] = new.command
        container.args[:] = new.args
        if len(container.mounts) == len(new.mounts):
            for mount, other in zip(container.mounts, new.mounts, strict=True):
                if (mount.volume, mount.path) == (other.volume, other.path):
                    mount.sub_path = other.sub_path
    for name in ("env", "image", "config_error"):
        _take(container, new, name)
    _take_amounts(container, new)


def _take_files(volume: spec_pb2.Volume, new: spec_pb2.Volume | None) -> None:
    if new is not None and volume.WhichOneof("source") == new.WhichOneof("source") == "files":
        _take(volume.files, new.files, "files")


def _without_keep(spec: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> spec_pb2.SandboxSpec:
    """`new` with the volumes that it asked to keep, so that they are no difference."""
    if not any(volume.HasField("keep") for volume in new.volumes):
        return new
    there = {volume.name: volume for volume in spec.volumes}
    out = spec_pb2.SandboxSpec()
    out.CopyFrom(new)
    for volume in out.volumes:
        if volume.HasField("keep") and volume.name in there:
            volume.CopyFrom(there[volume.name])
    return out


def _differences(old: Any, new: Any, path: str) -> list[str]:
    """Paths in proto names where two messages of one type differ, outermost first."""
    found: list[str] = []
    for field in old.DESCRIPTOR.fields:
        here = f"{path}.{field.name}" if path else field.name
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.is_repeated:
            if _is_map(field):
                if dict(before) != dict(after):
                    found.append(here)
            elif field.message_type is not None and len(before) == len(after):
                for index, (one, other) in enumerate(zip(before, after, strict=True)):
                    found.extend(_differences(one, other, f"{here}[{index}]"))
            elif list(before) != list(after):
                found.append(here)
        elif field.message_type is not None:
            if old.HasField(field.name) != new.HasField(field.name):
                found.append(here)
            elif old.HasField(field.name):
                found.extend(_differences(before, after, here))
        elif before != after or (
            field.has_presence and old.HasField(field.name) != new.HasField(field.name)
        ):
            found.append(here)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)
