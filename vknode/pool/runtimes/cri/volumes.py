"""The volumes of sandboxes on the host, and what of them a container mounts."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from vknode.pool import quantity
from vknode.pool.runtimes.cri import filesvolume, mounts
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.sandboxconfig import alias_lines, hosts_file
from vknode.pool.runtimes.cri.support import host_path_allowed
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_PROPAGATION = {
    spec_pb2.PROPAGATION_UNSPECIFIED: cri_pb2.PROPAGATION_PRIVATE,
    spec_pb2.PROPAGATION_HOST_TO_CONTAINER: cri_pb2.PROPAGATION_HOST_TO_CONTAINER,
    spec_pb2.PROPAGATION_BIDIRECTIONAL: cri_pb2.PROPAGATION_BIDIRECTIONAL,
}
_FILE_KINDS = {
    "Directory": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


class Volumes:
    """Creates, refreshes and removes. Every method is quick, but for `remove`."""

    def __init__(self, paths: Layout, host_path_prefixes: tuple[str, ...]) -> None:
        self._paths = paths
        self._prefixes = host_path_prefixes

    def prepare(self, spec: spec_pb2.SandboxSpec) -> None:
        """All folders of a sandbox and the content of its volumes; may be repeated.

        Raises Failure("FailedMount").
        """
        try:
            pod = self._paths.pod(spec.uid)
            pod.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._paths.log_directory(spec.uid).mkdir(mode=0o755, exist_ok=True)
            for volume in spec.volumes:
                self._prepare_volume(spec, volume)
        except OSError as error:
            raise Failure("FailedMount", f"cannot prepare volumes: {_say(error)}") from None

    def refresh(self, spec: spec_pb2.SandboxSpec) -> None:
        """New content of file volumes, visible to containers all at once."""
        try:
            for volume in spec.volumes:
                if volume.WhichOneof("source") == "files":
                    self._prepare_volume(spec, volume)
        except OSError as error:
            raise Failure("FailedMount", f"cannot refresh volumes: {_say(error)}") from None

    def write_hosts(self, spec: spec_pb2.SandboxSpec, ips: tuple[str, ...]) -> None:
        if spec.network.host_network:
            text = _read_host_hosts() + alias_lines(spec.network)
        else:
            text = hosts_file(spec.network, ips)
        _write(self._paths.hosts_file(spec.uid), text.encode(), 0o644)

    def container_mounts(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, attempt: int
    ) -> list[cri_pb2.Mount]:
        """Everything one instance mounts, with its own files and its log's folder made.
        Raises Failure."""
        try:
            log = self._paths.log_file(spec.uid, container.name, attempt)
            log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            return list(self._container_mounts(spec, container, attempt))
        except OSError as error:
            raise Failure(
                "CreateContainerConfigError", f"cannot prepare mounts: {_say(error)}"
            ) from None

    def forget_container(self, uid: str, name: str, attempt: int) -> None:
        """The files and sub-path mounts of one instance."""
        folder = self._sub_paths(uid, name, attempt)
        if folder.is_dir():
            mounts.unmount_below(folder)
            shutil.rmtree(folder, ignore_errors=True)
        self._paths.termination_file(uid, name, attempt).unlink(missing_ok=True)

    def remove(self, uid: str) -> None:
        """Everything of a sandbox. May take long (run it in a thread). Raises OSError."""
        for folder in (self._paths.pod(uid), self._paths.memory(uid)):
            if folder.is_dir():
                mounts.unmount_below(folder)
                shutil.rmtree(folder)

    def close(self) -> None:
        """Gives the tmpfs back where nothing is on it any more."""
        folder = self._paths.memory_dir
        if folder.is_dir() and not any(folder.iterdir()) and folder.is_mount():
            mounts.unmount(folder)
            folder.rmdir()

    # --- volumes ---

    def _path(self, uid: str, volume: spec_pb2.Volume) -> Path:
        match volume.WhichOneof("source"):
            case "empty_dir":
                return self._paths.volume(uid, volume.name, memory=volume.empty_dir.memory)
            case "files":
                return self._paths.volume(uid, volume.name, memory=volume.files.sensitive)
            case "host_path":
                return self._host_path(volume.host_path)
            case other:
                raise Failure(
                    "CreateContainerConfigError",
                    f"volume {volume.name!r}: source {other} is not supported",
                    retryable=False,
                )

    def _prepare_volume(self, spec: spec_pb2.SandboxSpec, volume: spec_pb2.Volume) -> None:
        source = volume.WhichOneof("source")
        path = self._path(spec.uid, volume)
        if source == "host_path":
            return
        fs_group = spec.security.fs_group if spec.security.HasField("fs_group") else None
        if path.is_relative_to(self._paths.memory_dir):
            self._need_memory()
        fresh = not path.is_dir()
        if fresh:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            path.mkdir(mode=0o777)
            if source == "empty_dir" and volume.empty_dir.memory and volume.empty_dir.size_limit:
                size = quantity.value(volume.empty_dir.size_limit)
                mounts.mount_tmpfs(path, size=size, mode=0o777)
            if fs_group is not None:
                os.chown(path, -1, fs_group)
            path.chmod(0o777 | (stat.S_ISGID if fs_group is not None else 0))
        if source == "files":
            filesvolume.write(path, volume.files, fs_group=fs_group)

    def _need_memory(self) -> None:
        folder = self._paths.memory_dir
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
        if not mounts.is_tmpfs(folder):
            mounts.mount_tmpfs(folder, size=None, mode=0o700)

    def _host_path(self, source: spec_pb2.HostPath) -> Path:
        """Where it really is, made where its type says so; looked at anew for every
        instance. Raises Failure("FailedMount") where that is not allowed.

        A symlink below an allowed prefix may lead anywhere, and whoever may write there
        may change it at any time; so the runtime is given the path without links. A Pod
        that swaps a folder for a link in the very moment of another's mount still wins.
        """
        path = Path(os.path.realpath(source.path))
        prefixes = tuple(map(os.path.realpath, self._prefixes))
        if not host_path_allowed(str(path), prefixes):
            raise Failure(
                "FailedMount",
                f"hostPath {source.path}: this pool does not allow Pods to mount it",
                retryable=False,
            )
        if source.type == "DirectoryOrCreate":
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif source.type == "FileOrCreate" and not path.exists():
            path.touch(mode=0o644)
        kind = source.type.removesuffix("OrCreate")
        if kind and not _FILE_KINDS[kind](path.stat().st_mode):
            raise Failure(
                "FailedMount", f"hostPath type check failed: {source.path} is not a {kind}"
            )
        return path

    # --- mounts ---

    def _container_mounts(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, attempt: int
    ) -> Iterable[cri_pb2.Mount]:
        by_name = {volume.name: volume for volume in spec.volumes}
        for index, mount in enumerate(container.mounts):
            volume = by_name.get(mount.volume)
            if volume is None:
                raise Failure("CreateContainerConfigError", f"there is no volume {mount.volume!r}")
            source = self._path(spec.uid, volume)
            if mount.sub_path:
                target = self._sub_paths(spec.uid, container.name, attempt) / str(index)
                source = _bind_sub_path(source, mount.sub_path, target)
            yield cri_pb2.Mount(
                host_path=str(source),
                container_path=mount.path,
                # As the kubelet: nobody writes into what the agent refreshes.
                readonly=mount.read_only or volume.WhichOneof("source") == "files",
                propagation=_PROPAGATION[mount.propagation],
                recursive_read_only=mount.recursive_read_only,
            )
        paths = {os.path.normpath(mount.path) for mount in container.mounts}
        if "/etc/hosts" not in paths:
            yield cri_pb2.Mount(
                host_path=str(self._paths.hosts_file(spec.uid)), container_path="/etc/hosts"
            )
        if container.termination_message_path:
            file = self._paths.termination_file(spec.uid, container.name, attempt)
            file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            _write(file, b"", 0o666)
            yield cri_pb2.Mount(
                host_path=str(file), container_path=container.termination_message_path
            )

    def _sub_paths(self, uid: str, container: str, attempt: int) -> Path:
        file = self._paths.termination_file(uid, container, attempt)
        return file.with_name(f"{attempt}.subpaths")


def _bind_sub_path(volume: Path, sub_path: str, target: Path) -> Path:
    """Pins a path inside a volume, so that no symlink swap can lead out of it later.

    A folder that is not there is made, as the kubelet does.
    """
    root = os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            found = mounts.open_in_root(root, sub_path)
        except FileNotFoundError:
            _make_folders(root, sub_path)
            found = mounts.open_in_root(root, sub_path)
        try:
            target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            mounts.unmount(target)
            if stat.S_ISDIR(os.fstat(found).st_mode):
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            mounts.bind(found, target)
        finally:
            os.close(found)
    finally:
        os.close(root)
    return target


def _make_folders(root: int, sub_path: str) -> None:
    mode = stat.S_IMODE(os.fstat(root).st_mode)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    parts = [part for part in sub_path.split("/") if part not in ("", ".")]
    for end in range(1, len(parts) + 1):
        try:
            os.close(mounts.open_in_root(root, "/".join(parts[:end])))
        except FileNotFoundError:
            parent = mounts.open_in_root(root, "/".join(parts[: end - 1]) or ".")
            try:
                os.mkdir(parts[end - 1], mode & 0o777, dir_fd=parent)
                made = os.open(parts[end - 1], flags, dir_fd=parent)
                try:
                    os.fchown(made, -1, os.fstat(root).st_gid)
                    os.fchmod(made, mode)
                finally:
                    os.close(made)
            finally:
                os.close(parent)


def _write(path: Path, data: bytes, mode: int) -> None:
    """A small file with exactly this mode, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


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
