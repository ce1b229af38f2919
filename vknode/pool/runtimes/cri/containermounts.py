"""What one instance of a container mounts. Blocking: where a path of the host is among it,
perhaps for ever.

The runtime gets paths, and looks at them later than we do. A path that somebody else may
change meanwhile (sub paths, host paths) is therefore opened, checked, and bound to a folder
that only we may write to.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vknode.pool.runtimes.cri import hostpath, layout, mounts, subpaths
from vknode.pool.runtimes.cri.hostpath import HostFile, HostPathError
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_PROPAGATION = {
    spec_pb2.PROPAGATION_UNSPECIFIED: cri_pb2.PROPAGATION_PRIVATE,
    spec_pb2.PROPAGATION_HOST_TO_CONTAINER: cri_pb2.PROPAGATION_HOST_TO_CONTAINER,
    spec_pb2.PROPAGATION_BIDIRECTIONAL: cri_pb2.PROPAGATION_BIDIRECTIONAL,
}
_REASON = "CreateContainerConfigError"


class ContainerMounts:
    def __init__(self, paths: Layout, host_path_prefixes: tuple[str, ...]) -> None:
        self._paths = paths
        self._prefixes = host_path_prefixes

    def make(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        attempt: int,
        images: Mapping[str, str],
    ) -> list[cri_pb2.Mount]:
        """With the instance's own files and its log's folder made. Raises Failure and
        OSError.

        All of its folders are made first: what follows may hang, and when it goes on the
        sandbox may be gone.
        """
        log = self._paths.log_file(spec.uid, container.name, attempt)
        log.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        bound = self._paths.bound(spec.uid, container.name, attempt)
        bound.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        termination = self._paths.termination_file(spec.uid, container.name, attempt)
        if container.termination_message_path:
            write(termination, b"", 0o666)
        by_name = {volume.name: volume for volume in spec.volumes}
        if any(m.sub_path or is_host_path(by_name, m) for m in container.mounts):
            bound.mkdir(mode=0o750, exist_ok=True)
        found = [
            self._mount(spec, container, mount, by_name, images, bound / str(index))
            for index, mount in enumerate(container.mounts)
        ]
        paths = {os.path.normpath(mount.path) for mount in container.mounts}
        if "/etc/hosts" not in paths:
            hosts = str(self._paths.hosts_file(spec.uid))
            found.append(cri_pb2.Mount(host_path=hosts, container_path="/etc/hosts"))
        if container.termination_message_path:
            found.append(
                cri_pb2.Mount(
                    host_path=str(termination), container_path=container.termination_message_path
                )
            )
        return found

    def _mount(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        mount: spec_pb2.Mount,
        by_name: Mapping[str, spec_pb2.Volume],
        images: Mapping[str, str],
        target: Path,
    ) -> cri_pb2.Mount:
        volume = by_name.get(mount.volume)
        if volume is None:
            raise Failure(
                _REASON,
                f'cannot find volume "{mount.volume}" to mount into container "{container.name}"',
            )
        if volume.WhichOneof("source") == "image":
            return cri_pb2.Mount(
                container_path=mount.path,
                image=cri_pb2.ImageSpec(image=images[volume.name]),
                image_sub_path=mount.sub_path,
                readonly=True,
            )
        if volume.HasField("host_path"):
            path = self._host_path(container, mount, volume.host_path, target)
        else:
            path = layout.local_volume(self._paths, spec.uid, volume)
            if mount.sub_path:
                with _folder(path) as root:
                    self._bind_sub_path(root, container, mount, target)
                path = target
        return cri_pb2.Mount(
            host_path=str(path),
            container_path=mount.path,
            # As the kubelet: nobody writes into what the agent refreshes.
            readonly=mount.read_only or volume.WhichOneof("source") == "files",
            propagation=_PROPAGATION[mount.propagation],
            recursive_read_only=mount.recursive_read_only,
            # What is ours gets the label of the Pod, where the runtime gives labels.
            selinux_relabel=not volume.HasField("host_path"),
        )

    def _host_path(
        self,
        container: spec_pb2.Container,
        mount: spec_pb2.Mount,
        source: spec_pb2.HostPath,
        target: Path,
    ) -> Path:
        try:
            with hostpath.opened(source, self._prefixes) as file:
                if mount.sub_path:
                    self._bind_sub_path(file.descriptor, container, mount, target)
                    return target
                if not self._to_be_pinned(container, source, file):
                    return file.path
                if mount.propagation == spec_pb2.PROPAGATION_HOST_TO_CONTAINER:
                    _refuse_private(file)
                try:
                    subpaths.make_target(file.descriptor, target)
                    mounts.pin(file.descriptor, target)
                except OSError as error:
                    if error.errno == errno.ENOSYS:
                        why = "the host's kernel is too old for it (needs Linux 5.12)"
                    else:
                        why = os.strerror(error.errno or 0).lower()
                    raise HostPathError(f"hostPath {source.path}: cannot be bound: {why}") from None
                return target
        except HostPathError as error:
            raise Failure("FailedMount", str(error), retryable=not error.forbidden) from None

    def _to_be_pinned(
        self, container: spec_pb2.Container, source: spec_pb2.HostPath, file: HostFile
    ) -> bool:
        """Not where that protects nothing: a privileged container can mount whatever it
        likes, and must share what it mounts with the host itself; where everything is
        allowed nothing can be got round; and who has our own folder has all Pods' volumes.
        There a copy would also hold all copies before it, twice as many each time."""
        everything = "/" in self._prefixes and (not source.within or "/" in source.within)
        if container.security.privileged or everything:
            return False
        return not self._paths.state_dir.is_relative_to(file.path)

    def _bind_sub_path(
        self, root: int, container: spec_pb2.Container, mount: spec_pb2.Mount, target: Path
    ) -> None:
        subpaths.bind(
            root,
            mount.sub_path,
            target,
            mount=mount.volume,
            container=container.name,
            shared=mount.propagation == spec_pb2.PROPAGATION_BIDIRECTIONAL,
        )


def is_host_path(by_name: Mapping[str, spec_pb2.Volume], mount: spec_pb2.Mount) -> bool:
    volume = by_name.get(mount.volume)
    return volume is not None and volume.HasField("host_path")


def _refuse_private(file: HostFile) -> None:
    """As runtimes do: the copy would look as if it followed its original."""
    if not mounts.follows_host(file.descriptor):
        raise Failure(
            "CreateContainerError",
            f'path "{file.path}" is on a mount of the host that is not shared or slave',
        )


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes, mode: int) -> None:
    """A small file with exactly this mode, whatever the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)
