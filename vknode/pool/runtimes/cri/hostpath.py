"""hostPath volumes: where they really are, and the check of their type in a kubelet's words
(pkg/volume/hostpath). Blocking, perhaps for ever: for a thread.

Theory of operation: a symlink below an allowed prefix may lead anywhere, and whoever may
write there may change it at any time. So the path is resolved first, it is asked whether that
is allowed, and then exactly this path is opened without following any link; what is mounted
is the open descriptor, whatever becomes of the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vknode.pool.hostpaths import host_path_allowed
from vknode.pool.runtimes.cri import mounts
from vknode.pool.v1 import spec_pb2

_KINDS = (
    (stat.S_ISDIR, "Directory"),
    (stat.S_ISREG, "File"),
    (stat.S_ISSOCK, "Socket"),
    (stat.S_ISCHR, "CharDevice"),
    (stat.S_ISBLK, "BlockDevice"),
)
_NAMES = {
    "Directory": "directory",
    "File": "file",
    "Socket": "socket file",
    "CharDevice": "character device",
    "BlockDevice": "block device",
}
# A link that came into the way meanwhile is resolved anew, so often at most.
_TRIES = 10


class HostPathError(Exception):
    """Cannot be mounted; `forbidden` where it never will."""

    def __init__(self, text: str, *, forbidden: bool = False) -> None:
        super().__init__(text)
        self.forbidden = forbidden


@dataclass(frozen=True, slots=True)
class HostFile:
    """What is there: `descriptor` (O_PATH) stands for it, whatever `path` has become."""

    path: Path
    descriptor: int


def check(source: spec_pb2.HostPath, prefixes: Sequence[str]) -> None:
    """Before anything runs: is it allowed and of its type? Makes it where its type says so.
    Raises HostPathError."""
    descriptor = _opened(source, prefixes, make=bool(source.type))[1]
    if descriptor is not None:
        os.close(descriptor)


@contextlib.contextmanager
def opened(source: spec_pb2.HostPath, prefixes: Sequence[str]) -> Iterator[HostFile]:
    """For one instance. Without a type a missing one becomes a folder, as runtimes do it.
    Raises HostPathError."""
    path, descriptor = _opened(source, prefixes, make=True)
    assert descriptor is not None
    try:
        yield HostFile(path, descriptor)
    finally:
        os.close(descriptor)


def _opened(
    source: spec_pb2.HostPath, prefixes: Sequence[str], *, make: bool
) -> tuple[Path, int | None]:
    for _ in range(_TRIES):
        path = Path(os.path.realpath(source.path))
        if not host_path_allowed(str(path), map(os.path.realpath, prefixes)):
            raise HostPathError(
                f"hostPath {source.path}: this pool does not allow Pods to mount it",
                forbidden=True,
            )
        if source.within and not host_path_allowed(str(path), map(os.path.realpath, source.within)):
            raise HostPathError(
                f"hostPath {source.path}: leads to where the Pod's namespace may not mount",
                forbidden=True,
            )
        try:
            descriptor = _open(path, source, make=make)
        except OSError as error:
            if error.errno == errno.ELOOP:
                continue
            raise HostPathError(_unknown(source, error)) from None
        if descriptor is not None and source.type:
            try:
                _check_type(os.fstat(descriptor).st_mode, source)
            except HostPathError:
                os.close(descriptor)
                raise
        return path, descriptor
    raise HostPathError(f"hostPath {source.path}: its links change all the time")


def _open(path: Path, source: spec_pb2.HostPath, *, make: bool) -> int | None:
    """None: it is not there, and needs not be. Raises OSError (ELOOP for a link) and
    HostPathError."""
    try:
        return mounts.open_no_links(path)
    except FileNotFoundError:
        if source.type and not source.type.endswith("OrCreate"):
            raise
        if not make:
            return None
    try:
        if source.type == "FileOrCreate":
            return _make_file(path)
        return _make_folders(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise
        verb = "open" if source.type == "FileOrCreate" else "mkdir"
        raise HostPathError(f"{verb} {source.path}: {(error.strerror or '').lower()}") from None


def _make_folders(path: Path) -> int:
    here = mounts.open_no_links(Path("/"))
    for part in path.parts[1:]:
        try:
            try:
                there = mounts.open_no_links(Path(part), here)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
                there = mounts.open_no_links(Path(part), here)
        finally:
            os.close(here)
        here = there
    return here


def _make_file(path: Path) -> int:
    parent = mounts.open_no_links(path.parent)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path.name, flags, 0o644, dir_fd=parent))
        return mounts.open_no_links(Path(path.name), parent)
    finally:
        os.close(parent)


def _unknown(source: spec_pb2.HostPath, error: OSError) -> str:
    why = f'path "{source.path}" does not exist'
    if not isinstance(error, FileNotFoundError):
        why = f"stat {source.path}: {(error.strerror or '').lower()}"
    if not source.type:
        return why
    wanted = source.type.removesuffix("OrCreate")
    return (
        f"hostPath type check failed, {source.path} is not a {_NAMES.get(wanted, wanted)}, "
        f"unable to determine its type: {why}"
    )


def _check_type(mode: int, source: spec_pb2.HostPath) -> None:
    wanted = source.type.removesuffix("OrCreate")
    if wanted not in _NAMES:
        raise HostPathError(f"{source.type} is an invalid volume type")
    kind = next((name for test, name in _KINDS if test(mode)), "")
    if kind != wanted:
        raise HostPathError(
            f"hostPath type check failed: {source.path} is not a {_NAMES[wanted]}, it's a {kind}"
        )
