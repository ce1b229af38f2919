"""The volumes of sandboxes on the host, and what of them a container mounts."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from vknode.pool import quantity
from vknode.pool.runtimes.cri import envfile, filesvolume, hostpath, layout, mounts, trees
from vknode.pool.runtimes.cri.containermounts import ContainerMounts, write
from vknode.pool.runtimes.cri.hostpath import HostPathError
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.resources import pod_limits
from vknode.pool.runtimes.cri.sandboxconfig import HOST_HEADER, alias_lines, hosts_file
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_NO_IMAGES: Mapping[str, str] = {}


class Volumes:
    """Creates, refreshes and removes. Every method is quick where it does not say else."""

    def __init__(self, paths: Layout, host_path_prefixes: tuple[str, ...]) -> None:
        self._paths = paths
        self._prefixes = host_path_prefixes
        self._mounts = ContainerMounts(paths, host_path_prefixes)

    def check_host_path(self, volume: spec_pb2.Volume) -> None:
        """Whether it is allowed and of its type; made where that says so. May hang (run it
        in a thread). Raises Failure("FailedMount")."""
        try:
            hostpath.check(volume.host_path, self._prefixes)
        except HostPathError as error:
            raise _not_set_up(volume, str(error), not error.forbidden) from None

    def prepare(self, spec: spec_pb2.SandboxSpec, memory_capacity: int) -> None:
        """All folders of a sandbox and the content of its volumes, but for paths of the
        host; may be repeated.

        `memory_capacity` (bytes) is the most that a volume in memory may hold. Raises
        Failure("FailedMount") in a kubelet's words.
        """
        try:
            pod = self._paths.pod(spec.uid)
            pod.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._paths.log_directory(spec.uid).mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise Failure("FailedMount", f"cannot make the Pod's folder: {_say(error)}") from None
        for volume in spec.volumes:
            try:
                self._prepare_volume(spec, volume, memory_capacity)
            except OSError as error:
                raise _not_set_up(volume, _say(error)) from None
            except Failure as failure:
                raise _not_set_up(volume, failure.message, failure.retryable) from None

    def refresh(self, spec: spec_pb2.SandboxSpec) -> None:
        """New content of file volumes, visible to containers all at once."""
        try:
            for volume in spec.volumes:
                if volume.WhichOneof("source") == "files":
                    self._prepare_volume(spec, volume, 0)
        except OSError as error:
            raise Failure("FailedMount", f"cannot refresh volumes: {_say(error)}") from None

    def write_hosts(self, spec: spec_pb2.SandboxSpec, ips: tuple[str, ...]) -> None:
        if spec.network.host_network:
            text = HOST_HEADER + _read_host_hosts() + alias_lines(spec.network)
        else:
            text = hosts_file(spec.network, ips)
        write(self._paths.hosts_file(spec.uid), text.encode(), 0o644)

    def container_mounts(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        attempt: int,
        images: Mapping[str, str] = _NO_IMAGES,
    ) -> list[cri_pb2.Mount]:
        """Everything one instance mounts, with its own files and its log's folder made; or
        nothing is left bound. `images` are the runtime's IDs of image volumes by the volumes'
        names. May hang where a host path is among it (run it in a thread). Raises Failure."""
        try:
            return self._mounts.make(spec, container, attempt, images)
        except Failure:
            self.forget_container(spec.uid, container.name, attempt)
            raise
        except OSError as error:
            self.forget_container(spec.uid, container.name, attempt)
            raise Failure(
                "CreateContainerConfigError", f"cannot prepare mounts: {_say(error)}"
            ) from None

    def environment(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container
    ) -> dict[int, bytes | None]:
        """Values of variables that come from files, by their index in `container.env`; None
        where one is to be left out. May take long (run it in a thread). Raises
        Failure("CreateContainerConfigError")."""
        by_name = {volume.name: volume for volume in spec.volumes}
        files = envfile.EnvFiles()
        found: dict[int, bytes | None] = {}
        for index, entry in enumerate(container.env):
            if entry.HasField("file"):
                volume = by_name.get(entry.file.volume)
                if volume is None or volume.WhichOneof("source") != "empty_dir":
                    raise Failure(
                        "CreateContainerConfigError",
                        f'cannot find the volume "{entry.file.volume}" referenced by FileKeyRef',
                    )
                folder = layout.local_volume(self._paths, spec.uid, volume)
                found[index] = files.read(folder, entry.file)
        return found

    def forget_container(self, uid: str, name: str, attempt: int) -> None:
        """The files and mounts of one instance."""
        folder = self._paths.bound(uid, name, attempt)
        if folder.is_dir():
            with contextlib.suppress(OSError):  # what is left goes with the sandbox
                mounts.unmount_below(folder)
                trees.remove(folder)
        self._paths.termination_file(uid, name, attempt).unlink(missing_ok=True)

    def remove(self, uid: str) -> None:
        """Everything of a sandbox. May take long (run it in a thread). Raises OSError."""
        for folder in (self._paths.pod(uid), self._paths.memory(uid)):
            if folder.is_dir():
                mounts.unmount_below(folder)
                trees.remove(folder)

    def close(self) -> None:
        """Gives the tmpfs back where nothing is on it any more."""
        folder = self._paths.memory_dir
        if folder.is_dir() and not any(folder.iterdir()) and folder.is_mount():
            mounts.unmount(folder)
            folder.rmdir()

    # --- volumes ---

    def _prepare_volume(
        self, spec: spec_pb2.SandboxSpec, volume: spec_pb2.Volume, memory_capacity: int
    ) -> None:
        if volume.WhichOneof("source") in ("image", "host_path"):
            return  # the runtime's, the host's
        path = layout.local_volume(self._paths, spec.uid, volume)
        fs_group = spec.security.fs_group if spec.security.HasField("fs_group") else None
        in_memory = path.is_relative_to(self._paths.memory_dir)
        if in_memory:
            self._need_memory()
        # The root of a tmpfs is sticky, as a kubelet leaves it: each volume of that kind is
        # one there.
        mode = 0o777 | (stat.S_ISVTX if in_memory else 0)
        mode |= stat.S_ISGID if fs_group is not None else 0
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if volume.WhichOneof("source") == "empty_dir" and volume.empty_dir.memory:
            path.mkdir(mode=0o700, exist_ok=True)
            if not path.is_mount():
                size = memory_volume_size(spec, volume.empty_dir, memory_capacity)
                mounts.mount_tmpfs(path, size=size, mode=mode, group=fs_group)
        elif not path.is_dir():
            _make_folder(path, mode, fs_group)
        if volume.HasField("files"):
            filesvolume.write(path, volume.files, fs_group=fs_group)

    def _need_memory(self) -> None:
        folder = self._paths.memory_dir
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
        if not mounts.is_tmpfs(folder):
            mounts.mount_tmpfs(folder, size=None, mode=0o700)


def memory_volume_size(
    spec: spec_pb2.SandboxSpec, source: spec_pb2.EmptyDir, memory_capacity: int
) -> int:
    """Bytes of an emptyDir in memory: what its own limit, the Pod's and the host's memory
    allow (calculateEmptyDirMemorySize)."""
    own = quantity.value(source.size_limit) if source.size_limit else 0
    return min(x for x in (own, pod_limits(spec).memory or 0, memory_capacity) if x > 0)


def _not_set_up(volume: spec_pb2.Volume, why: str, retryable: bool = True) -> Failure:
    return Failure(
        "FailedMount",
        f'MountVolume.SetUp failed for volume "{volume.name}" : {why}',
        retryable=retryable,
    )


def _make_folder(path: Path, mode: int, group: int | None) -> None:
    """Whole or not at all: what is there is taken as set up by whoever tries again."""
    new = path.with_name(f".{path.name}.new")
    trees.remove(new)
    new.mkdir(mode=0o700)
    if group is not None:
        os.chown(new, -1, group)
    new.chmod(mode)
    new.rename(path)


def _read_host_hosts() -> str:
    try:
        return Path("/etc/hosts").read_text()
    except OSError:
        return "127.0.0.1\tlocalhost\n"


def _say(error: OSError) -> str:
    """Why, without contents; the path is ours and helps."""
    name = errno.errorcode.get(error.errno or 0, "error")
    where = f" ({error.filename})" if error.filename else ""
    return f"{os.strerror(error.errno) if error.errno else error} [{name}]{where}"
