"""Where things of a sandbox live, and the labels by which ours are known. Pure.

Everything of one sandbox is below one folder named by its UID, so that removal is one
step and nothing of a namesake is ever touched:

    STATE/pods/UID/etc-hosts
    STATE/pods/UID/volumes/NAME/…            (on disk)
    STATE/pods/UID/containers/NAME/ATTEMPT.termination
    STATE/pods/UID/containers/NAME/ATTEMPT.mounts/INDEX    (sub paths and host paths, bound)
    STATE/pods/UID/logs/NAME/ATTEMPT.log
    STATE/pulls/…                            (who may use which image: `pullrecords`)
    MEMORY/UID/volumes/NAME/…                (tmpfs: sensitive files, emptyDir in memory)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

# The kubelet's, so that crictl and node agents show our sandboxes by Pod.
POD_NAME = "io.kubernetes.pod.name"
POD_NAMESPACE = "io.kubernetes.pod.namespace"
POD_UID = "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
# Ours.
POOL = "vknode.dev/pool"
CELL = "vknode.dev/owner-cell"
TENANT = "vknode.dev/tenant"
# Annotations on sandboxes: what of the spec a new process must know.
STORAGE_LIMITS = "vknode.dev/storage-limits"
HOST_PORTS = "vknode.dev/host-ports"
# IPs of a sandbox in its host's network, for which the runtime tells none.
HOST_IPS = "vknode.dev/host-ips"
# Annotations on containers: what an exit needs, whoever asks.
TERMINATION_PATH = "vknode.dev/termination-message-file"
TERMINATION_FALLBACK = "vknode.dev/termination-message-fallback-to-logs"
IMAGE_REFERENCE = "vknode.dev/image-reference"
IMAGE_DIGEST = "vknode.dev/image-id"

# Longer or stranger names would leave their folder, or the file system's limits.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def safe_name(kind: str, name: str) -> str:
    """`name` if it can be one part of a path; raises Failure otherwise."""
    if not _SAFE_NAME.fullmatch(name):
        raise Failure(
            "CreateContainerConfigError",
            f"{kind} {name[:64]!r} cannot be used in a path; use letters, digits, '.', '_', '-'",
            retryable=False,
        )
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    state_dir: Path
    memory_dir: Path

    @property
    def pulls(self) -> Path:
        return self.state_dir / "pulls"

    def pod(self, uid: str) -> Path:
        return self.state_dir / "pods" / safe_name("sandbox UID", uid)

    def memory(self, uid: str) -> Path:
        return self.memory_dir / safe_name("sandbox UID", uid)

    def hosts_file(self, uid: str) -> Path:
        return self.pod(uid) / "etc-hosts"

    def log_directory(self, uid: str) -> Path:
        return self.pod(uid) / "logs"

    def logs(self, uid: str, container: str) -> Path:
        """Of all instances of a container, rotated ones included."""
        return self.log_directory(uid) / safe_name("container", container)

    def log_name(self, container: str, attempt: int) -> str:
        return f"{safe_name('container', container)}/{attempt}.log"

    def log_file(self, uid: str, container: str, attempt: int) -> Path:
        return self.log_directory(uid) / self.log_name(container, attempt)

    def termination_file(self, uid: str, container: str, attempt: int) -> Path:
        name = safe_name("container", container)
        return self.pod(uid) / "containers" / name / f"{attempt}.termination"

    def bound(self, uid: str, container: str, attempt: int) -> Path:
        file = self.termination_file(uid, container, attempt)
        return file.with_name(f"{attempt}.mounts")

    def volumes(self, uid: str, *, memory: bool) -> Path:
        return (self.memory(uid) if memory else self.pod(uid)) / "volumes"

    def volume(self, uid: str, name: str, *, memory: bool) -> Path:
        return self.volumes(uid, memory=memory) / safe_name("volume", name)


def local_volume(paths: Layout, uid: str, volume: spec_pb2.Volume) -> Path:
    """The folder of a volume that is ours. Raises Failure for any other."""
    match volume.WhichOneof("source"):
        case "empty_dir":
            return paths.volume(uid, volume.name, memory=volume.empty_dir.memory)
        case "files":
            return paths.volume(uid, volume.name, memory=volume.files.sensitive)
        case other:
            raise Failure(
                "CreateContainerConfigError",
                f"volume {volume.name!r}: source {other} is not supported",
                retryable=False,
            )


def ours(labels: Mapping[str, str], pool: str) -> bool:
    """Whether a sandbox or container with these labels belongs to this pool."""
    return labels.get(POOL) == pool and bool(labels.get(POD_UID))
