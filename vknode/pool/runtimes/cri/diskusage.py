"""How much a folder holds on disk. Blocking: for a thread.

Its content belongs to a container, which may do anything to it meanwhile: no link is
followed, nothing outside is counted, and neither depth nor number of files can make a
measurement take more than its share of the processor, or memory that grows with them.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Each level holds a descriptor, one of a large folder two; what lies deeper is not counted.
_DEEPEST = 128
# Entries of a folder that are read ahead. Where there are more it stays open.
_AHEAD = 1000
# After so many entries the thread rests for as long as they took: half of one core at most.
_BREATH = 500
_BLOCK = 512  # bytes of st_blocks, whatever the file system's are
ALL = 1 << 62


@dataclass(frozen=True, slots=True)
class Used:
    """Bytes as du(1) counts them, and inodes; of hard links each file once."""

    bytes: int
    inodes: int


def never() -> bool:
    return False


def measure(folder: Path, enough: int = ALL, stop: Callable[[], bool] = never) -> Used:
    """What a folder holds, itself included; one that is not there holds nothing.

    May stop above `enough` bytes, and stops soon after `stop` says so: then the
    numbers are too small."""
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return Used(0, 0)
    return _Walk(enough, stop).run(root)


def usage(folder: Path, enough: int) -> int:
    """Bytes alone; as `measure`."""
    return measure(folder, enough).bytes


def files(folder: Path) -> Used:
    """The files that lie in a folder, not what is below it nor itself. Raises OSError."""
    blocks = inodes = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                blocks += status.st_blocks
                inodes += 1
    return Used(blocks * _BLOCK, inodes)


def one_file(file: Path) -> Used:
    """Raises OSError."""
    return Used(file.lstat().st_blocks * _BLOCK, 1)


class _Walk:
    def __init__(self, enough: int, stop: Callable[[], bool]) -> None:
        self._enough = enough
        self._stop = stop
        # Each link of a file counts for its share: together they are the file once, and
        # which were seen need not be kept. A link to outside would need the same mount.
        self._blocks = 0.0
        self._inodes = 0.0
        self._entries = 0
        self._since = time.monotonic()
        self._stopped = False

    def run(self, root: int) -> Used:
        """Closes `root`."""
        status = os.fstat(root)
        self._count(status.st_blocks, 1)
        stack: list[_Folder] = []
        try:
            self._push(stack, root)
            # By the number that is told: shares of blocks do not add up to whole ones.
            while stack and self._bytes <= self._enough and not self._stopped:
                folder = stack[-1]
                name = folder.next()
                if name is None:
                    stack.pop().close()
                else:
                    self._entry(stack, folder.descriptor, name, status.st_dev)
        finally:
            for folder in stack:
                folder.close()
        return Used(self._bytes, round(self._inodes))

    @property
    def _bytes(self) -> int:
        return round(self._blocks * _BLOCK)

    def _count(self, blocks: int, links: int) -> None:
        self._blocks += blocks / links
        self._inodes += 1 / links

    def _entry(self, stack: list[_Folder], parent: int, name: str, device: int) -> None:
        self._rest()
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if status.st_dev != device:
                return
            folder = stat.S_ISDIR(status.st_mode)
            self._count(status.st_blocks, 1 if folder else max(status.st_nlink, 1))
            if folder and len(stack) < _DEEPEST:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._push(stack, os.open(name, flags, dir_fd=parent))
        except OSError:
            return  # gone or changed meanwhile

    def _push(self, stack: list[_Folder], descriptor: int) -> None:
        try:
            stack.append(_Folder(descriptor))
        except OSError:
            os.close(descriptor)

    def _rest(self) -> None:
        self._entries += 1
        if self._entries % _BREATH == 0:
            self._stopped = self._stop()
            now = time.monotonic()
            time.sleep(min(now - self._since, 0.1))
            self._since = time.monotonic()


class _Folder:
    """A folder that is being read. Owns its descriptor, unless it raises OSError at first."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._entries = entries = os.scandir(descriptor)
        names = (entry.name for entry in entries)
        try:
            ahead = list(itertools.islice(names, _AHEAD))
        except OSError:
            entries.close()
            raise
        self._names: Iterator[str] = itertools.chain(ahead, names)
        if len(ahead) < _AHEAD:
            entries.close()  # all read

    def next(self) -> str | None:
        """None: there are no more."""
        try:
            return next(self._names, None)
        except OSError:
            return None

    def close(self) -> None:
        self._entries.close()
        os.close(self.descriptor)
