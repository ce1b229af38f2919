"""A folder whose files are shown, and nothing outside it: blocking, for a thread.

How a path cannot lead out. `..` is no name here. Links are followed where they stay within the
folder, as /var/log has many of them: the path is resolved first, then walked from the folder
down, one name after the other, and a link that turns up on this walk (put there meanwhile) ends
it. Nothing is opened for reading before the kernel has said what it is: opening a FIFO would wait
for its writer, opening a device may do something.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Entries of a folder that is still listed: all are in memory at once.
MOST_ENTRIES = 50_000
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotShown(Exception):
    """What is no regular file and no folder, or is not in the folder."""


class TooManyEntries(Exception):
    """The folder has more than `MOST_ENTRIES`."""


class OpenedFile:
    """A regular file. `size` in bytes and `modified` in seconds since the epoch are those of the
    moment in which it was opened.

    It is closed when nobody refers to it any more: who reads may have left while a thread still
    waits for a disk, and a file that was closed under it could be another one by then.
    """

    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self._descriptor = descriptor
        self.size = status.st_size
        self.modified = int(status.st_mtime)
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, count: int) -> bytes:
        """Fewer bytes at the end of the file. Raises OSError."""
        return os.pread(self._descriptor, count, offset)


@dataclass(frozen=True, slots=True)
class Folder:
    """`entries`: names, and whether each is a folder, in the order of their bytes; None where
    they were not asked for."""

    modified: int
    entries: tuple[tuple[bytes, bool], ...] | None


class LogFolder:
    """What is below `path`; a path that is missing has nothing below it."""

    def __init__(self, path: Path) -> None:
        self._path = os.fsencode(path)

    def find(self, names: Sequence[bytes], *, listed: bool) -> OpenedFile | Folder:
        """What is there under these names; a folder's entries if `listed`. Raises `NotShown`,
        `TooManyEntries`, OSError."""
        if any(name in (b"", b".", b"..") or b"\0" in name or b"/" in name for name in names):
            raise NotShown
        root = os.path.realpath(self._path)
        found = os.path.realpath(b"/".join((root.rstrip(b"/"), *names)) or root)
        if os.path.commonpath((root, found)) != root:
            raise NotShown
        here = os.open(root, _WALK)
        try:
            for name in found[len(root) :].split(b"/"):
                if name:
                    below = os.open(name, _WALK, dir_fd=here)
                    os.close(here)
                    here = below
            return _opened(here, listed)
        finally:
            os.close(here)


def _opened(place: int, listed: bool) -> OpenedFile | Folder:
    """`place` was opened without access to its content."""
    status = os.fstat(place)
    again = f"/proc/self/fd/{place}"
    if stat.S_ISREG(status.st_mode):
        return OpenedFile(os.open(again, _READ), status)
    if not stat.S_ISDIR(status.st_mode):
        raise NotShown
    return Folder(int(status.st_mtime), _entries(again) if listed else None)


def _entries(path: str) -> tuple[tuple[bytes, bool], ...]:
    found: list[tuple[bytes, bool]] = []
    descriptor = os.open(path, _READ | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if len(found) == MOST_ENTRIES:
                    raise TooManyEntries
                found.append((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)))
    finally:
        os.close(descriptor)
    return tuple(sorted(found))
