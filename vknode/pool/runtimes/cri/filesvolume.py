"""Files of a configMap, secret, downwardAPI or projected volume, changed all at once.

The layout is the one of the kubelet's AtomicWriter
(pkg/volume/util/atomic_writer.go), which programs that watch their configuration
rely on:

    VOLUME/..2026_01_02_15_04_05.1234/     a whole payload, never changed
    VOLUME/..data  -> ..2026_01_02_…       replaced by rename(2): the one atomic step
    VOLUME/key     -> ..data/key           one link for each first part of a path
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from pathlib import Path

from vknode.pool.runtimes.cri import trees
from vknode.pool.v1 import spec_pb2

_DATA = "..data"


def write(volume: Path, files: spec_pb2.Files, *, fs_group: int | None) -> bool:
    """Brings the folder to this content. Returns False where it had it already.

    With `fs_group` all belongs to that group and it may read it, as
    pkg/volume/volume_linux.go does it for read-only volumes. Raises OSError.
    """
    current = _current(volume)
    if current is not None and _same(current, files, fs_group):
        _link(volume, current, files, fs_group)  # in case a crash cut that off the last time
        return False
    payload = _write_payload(volume, files, fs_group)
    temporary = volume / "..data_tmp"
    temporary.unlink(missing_ok=True)
    _symlink(temporary, payload.name, fs_group)
    temporary.rename(volume / _DATA)
    _link(volume, payload, files, fs_group)
    return True


def _write_payload(volume: Path, files: spec_pb2.Files, fs_group: int | None) -> Path:
    stamp = time.strftime("..%Y_%m_%d_%H_%M_%S", time.gmtime())
    payload = volume / f"{stamp}.{secrets.randbelow(10**10)}"
    payload.mkdir(mode=0o755)
    folders = {payload}
    for file in files.files:
        path = payload / file.path
        for parent in reversed(path.relative_to(payload).parents[:-1]):
            folder = payload / parent
            if folder not in folders:
                folder.mkdir(mode=0o755, exist_ok=True)
                folders.add(folder)
        _write_file(path, file, fs_group)
    for folder in folders:
        if fs_group is not None:
            os.chown(folder, -1, fs_group)
        folder.chmod(0o755 | (stat.S_ISGID if fs_group is not None else 0))
    return payload


def _symlink(link: Path, target: str, fs_group: int | None, user: int = -1) -> None:
    link.symlink_to(target)
    if fs_group is not None or user != -1:
        os.chown(link, user, -1 if fs_group is None else fs_group, follow_symlinks=False)


def _link(volume: Path, payload: Path, files: spec_pb2.Files, fs_group: int | None) -> None:
    """One link for each first part of a path, and nothing beside these and `payload`."""
    wanted = {file.path.split("/", 1)[0] for file in files.files}
    users = {file.path: file.user for file in files.files if file.HasField("user")}
    for name in wanted:
        link = volume / name
        if not link.is_symlink():
            _symlink(link, f"{_DATA}/{name}", fs_group, users.get(name, -1))
    for entry in list(volume.iterdir()):
        ours = entry.name.startswith("..")
        if entry.name in (_DATA, payload.name) or (not ours and entry.name in wanted):
            continue
        if entry.is_dir() and not entry.is_symlink():
            trees.remove(entry)
        else:
            entry.unlink()


def _write_file(path: Path, file: spec_pb2.File, fs_group: int | None) -> None:
    # Created unreadable for others, whatever the umask, before there is content.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(file.content)
        user = file.user if file.HasField("user") else -1
        if user != -1 or fs_group is not None:
            os.fchown(descriptor, user, -1 if fs_group is None else fs_group)
        os.fchmod(descriptor, _mode(file, fs_group))


def _mode(file: spec_pb2.File, fs_group: int | None) -> int:
    return (file.mode & 0o777) | (0o440 if fs_group is not None else 0)


def _current(volume: Path) -> Path | None:
    try:
        name = str((volume / _DATA).readlink())
    except OSError:
        return None
    return volume / name if "/" not in name else None


def _same(current: Path, files: spec_pb2.Files, fs_group: int | None) -> bool:
    there = {str(path.relative_to(current)) for path in current.rglob("*") if not path.is_dir()}
    if there != {file.path for file in files.files}:
        return False
    for file in files.files:
        path = current / file.path
        status = path.stat()
        if (
            status.st_size != len(file.content)
            or status.st_mode & 0o777 != _mode(file, fs_group)
            or (file.HasField("user") and status.st_uid != file.user)
        ):
            return False
        with contextlib.suppress(OSError):
            if path.read_bytes() == file.content:
                continue
        return False
    return True
