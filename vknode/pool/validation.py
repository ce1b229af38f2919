"""Is a request well-formed? What the proto comments forbid is refused here, before
any runtime or engine sees it; what a runtime cannot honour is its own matter."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vknode.pool.errors import REFUSED, PoolFailure
from vknode.pool.v1 import spec_pb2

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# A UID becomes part of paths: nothing that could leave a directory.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def refused(field: str, message: str) -> PoolFailure:
    return PoolFailure(REFUSED, message, field=field)


def check_uid(uid: str, field: str = "uid") -> None:
    """Raises PoolFailure(REFUSED)."""
    if not uid:
        raise refused(field, "is empty; give the Pod's UID")
    if not _UID.fullmatch(uid):
        raise refused(
            field, "is not a UID: letters, digits, '-', '_' and '.', at most 128 characters"
        )


def check_container(name: str) -> None:
    """Raises PoolFailure(REFUSED)."""
    if not name:
        raise refused("container", "is empty; name one container of the sandbox")


def check_update(spec: spec_pb2.SandboxSpec) -> None:
    """What must be known to tell what of it counts (`engine/newer.py`); the spec that comes of
    that is checked as a whole. The rest of this one holds nothing up, whatever it says.
    Raises PoolFailure(REFUSED)."""
    check_uid(spec.uid, "uid")
    for group in ("init_containers", "containers", "ephemeral_containers", "volumes"):
        names: set[str] = set()
        for index, one in enumerate(getattr(spec, group)):
            if one.name in names:
                raise refused(f"{group}[{index}].name", f"{one.name!r} is there twice")
            names.add(one.name)


def check_spec(spec: spec_pb2.SandboxSpec) -> None:
    """Raises PoolFailure(REFUSED) with the path of the first field that is wrong."""
    check_uid(spec.uid, "uid")
    for field in ("namespace", "name", "cell", "tenant"):
        if not getattr(spec, field):
            raise refused(field, "is empty; it is required")
    if spec.restart_policy == spec_pb2.RESTART_POLICY_UNSPECIFIED:
        raise refused("restart_policy", "is unspecified; choose ALWAYS, ON_FAILURE or NEVER")
    if spec.termination_grace_period_seconds < 0:
        raise refused("termination_grace_period_seconds", "is negative")
    if spec.HasField("active_deadline_seconds") and spec.active_deadline_seconds < 1:
        raise refused("active_deadline_seconds", "must be at least 1")
    if not spec.containers:
        raise refused("containers", "is empty; a sandbox has at least one container")
    if len(spec.network.hostname) > 63:
        raise refused("network.hostname", "is longer than 63 characters")
    volumes = _check_volumes(spec)
    names: set[str] = set()
    for path, container in _containers(spec):
        if not _LABEL.fullmatch(container.name):
            raise refused(f"{path}.name", f"{container.name!r} is not a DNS label")
        if container.name in names:
            raise refused(f"{path}.name", f"{container.name!r} names two containers")
        names.add(container.name)
        _check_container_spec(path, container, volumes)


def _containers(spec: spec_pb2.SandboxSpec) -> Iterator[tuple[str, spec_pb2.Container]]:
    for group in ("init_containers", "containers", "ephemeral_containers"):
        for index, container in enumerate(getattr(spec, group)):
            yield f"{group}[{index}]", container


def _check_container_spec(path: str, container: spec_pb2.Container, volumes: set[str]) -> None:
    if not container.image:
        raise refused(f"{path}.image", "is empty")
    if container.image_pull_policy == spec_pb2.IMAGE_PULL_POLICY_UNSPECIFIED:
        raise refused(
            f"{path}.image_pull_policy", "is unspecified; choose ALWAYS, IF_NOT_PRESENT or NEVER"
        )
    for index, entry in enumerate(container.env):
        if not entry.name or "=" in entry.name or "\0" in entry.name:
            raise refused(f"{path}.env[{index}].name", "is not a variable's name")
        if entry.HasField("file"):
            _check_env_file(f"{path}.env[{index}].file", entry.file, volumes)
    for index, name in enumerate(container.resize_restarts):
        if name not in ("cpu", "memory"):
            raise refused(f"{path}.resize_restarts[{index}]", f"{name!r} is not cpu or memory")
    for index, port in enumerate(container.ports):
        if not 1 <= port.container_port <= 65535:
            raise refused(f"{path}.ports[{index}].container_port", "is not from 1 to 65535")
        if not 0 <= port.host_port <= 65535:
            raise refused(f"{path}.ports[{index}].host_port", "is not from 0 to 65535")
    for index, mount in enumerate(container.mounts):
        if mount.volume not in volumes:
            raise refused(
                f"{path}.mounts[{index}].volume", f"{mount.volume!r} is not one of `volumes`"
            )
        if not mount.path.startswith("/") or ".." in mount.path.split("/"):
            raise refused(f"{path}.mounts[{index}].path", "is not an absolute path without '..'")
        if mount.sub_path.startswith("/") or ".." in mount.sub_path.split("/"):
            raise refused(f"{path}.mounts[{index}].sub_path", "is not a relative path without '..'")


def _check_env_file(path: str, file: spec_pb2.EnvFile, volumes: set[str]) -> None:
    if file.volume not in volumes:
        raise refused(f"{path}.volume", f"{file.volume!r} is not one of `volumes`")
    if not file.path or file.path.startswith("/") or ".." in file.path.split("/"):
        raise refused(f"{path}.path", "is not a relative path without '..'")
    if not file.key:
        raise refused(f"{path}.key", "is empty; name one variable of the file")


def _check_volumes(spec: spec_pb2.SandboxSpec) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(spec.volumes):
        path = f"volumes[{index}]"
        if not _LABEL.fullmatch(volume.name):
            raise refused(f"{path}.name", f"{volume.name!r} is not a DNS label")
        if volume.name in names:
            raise refused(f"{path}.name", f"{volume.name!r} names two volumes")
        names.add(volume.name)
        if volume.WhichOneof("source") is None:
            raise refused(path, "has no source")
        if volume.HasField("keep"):
            raise refused(f"{path}.keep", "there is nothing to keep: the sandbox is new")
        paths: set[str] = set()
        for at, file in enumerate(volume.files.files):
            parts = file.path.split("/")
            if not file.path or "" in parts or ".." in parts or "." in parts or "\0" in file.path:
                raise refused(
                    f"{path}.files.files[{at}].path",
                    "is not a relative path of plain parts between '/'",
                )
            if file.path in paths:
                raise refused(f"{path}.files.files[{at}].path", "names two files")
            paths.add(file.path)
            if file.mode > 0o7777:
                raise refused(f"{path}.files.files[{at}].mode", "has more than permission bits")
    return names
