"""Sub paths of volumes, pinned by bind mounts (pkg/volume/util/subpath).

A container may have made anything of a path in its volume, and may change it at any time:
what a mount shows is therefore opened first, without ever leaving the volume, and the open
descriptor is bound. As with a kubelet a path that leads out is an error, not a way back in.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vknode.pool.runtimes.cri import mounts
from vknode.pool.runtimes.facts import Failure


def bind(
    root: int, sub_path: str, target: Path, *, mount: str, container: str, shared: bool
) -> None:
    """Binds a path inside an open volume to `target`; a folder that is not there is made.

    `mount` (the volume's name) and `container` are for the text; `shared`: what is mounted
    below it is to reach the volume. Raises
    Failure("CreateContainerConfigError"), which says nothing of the host's files.
    """
    where = f'volumeMount "{mount}" of container "{container}"'
    prepare = Failure("CreateContainerConfigError", f"failed to prepare subPath for {where}")
    try:
        try:
            found = mounts.open_beneath(root, sub_path)
        except FileNotFoundError:
            try:
                _make_folders(root, sub_path)
            except OSError:
                raise Failure(
                    "CreateContainerConfigError", f"failed to create subPath directory for {where}"
                ) from None
            found = mounts.open_beneath(root, sub_path)
        try:
            make_target(found, target)
            _bind(found, target, shared=shared)
        finally:
            os.close(found)
    except OSError:
        raise prepare from None


def _bind(found: int, target: Path, *, shared: bool) -> None:
    if not shared:
        try:
            mounts.pin(found, target, below=False)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        else:
            return
    mounts.bind(found, target)


def make_target(found: int, target: Path) -> None:
    """A place to mount what is open; its folder must be there: where the sandbox has been
    removed meanwhile nothing is to come back."""
    mounts.unmount(target)
    if stat.S_ISDIR(os.fstat(found).st_mode):
        target.mkdir(exist_ok=True)
    else:
        target.touch()


def _make_folders(root: int, sub_path: str) -> None:
    """With the volume's own mode and group, so that an fsGroup may write into them."""
    status = os.fstat(root)
    mode = stat.S_IMODE(status.st_mode)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    parts = [part for part in sub_path.split("/") if part not in ("", ".")]
    for end in range(1, len(parts) + 1):
        try:
            os.close(mounts.open_beneath(root, "/".join(parts[:end])))
        except FileNotFoundError:
            parent = mounts.open_beneath(root, "/".join(parts[: end - 1]) or ".")
            try:
                os.mkdir(parts[end - 1], mode & 0o777, dir_fd=parent)
                made = os.open(parts[end - 1], flags, dir_fd=parent)
                try:
                    os.fchown(made, -1, status.st_gid)
                    os.fchmod(made, mode)
                finally:
                    os.close(made)
            finally:
                os.close(parent)
