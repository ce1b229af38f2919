"""How much a folder holds on disk. Blocking: for a thread.

Its content belongs to a container, which may do anything to it meanwhile: no link is
followed, nothing outside is counted, and neither depth nor number of files can make a
measurement take more than its share of the processor.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

# Each level holds a descriptor; what lies deeper is not counted.
_DEEPEST = 128
# After so many entries the thread rests for as long as they took: half of one core at most.
_BREATH = 500
_BLOCK = 512  # bytes of st_blocks, whatever the file system's are


def usage(folder: Path, enough: int) -> int:
    """Bytes as du(1) counts them, hard links once; may stop above `enough`. A folder that
    is not there holds nothing."""
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    return _Walk(enough).run(root)


class _Walk:
    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._linked: set[tuple[int, int]] = set()
        self._entries = 0
        self._since = time.monotonic()

    def run(self, root: int) -> int:
        """Closes `root`."""
        status = os.fstat(root)
        device, total = status.st_dev, status.st_blocks * _BLOCK
        stack: list[tuple[int, list[str]]] = []
        try:
            self._push(stack, root)
            while stack and total <= self._enough:
                descriptor, left = stack[-1]
                if not left:
                    stack.pop()
                    os.close(descriptor)
                    continue
                total += self._entry(stack, descriptor, left.pop(), device)
        finally:
            for descriptor, _ in stack:
                os.close(descriptor)
        return total

    def _entry(
        self, stack: list[tuple[int, list[str]]], parent: int, name: str, device: int
    ) -> int:
        self._rest()
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if status.st_dev != device:
                return 0
            if stat.S_ISDIR(status.st_mode):
                if len(stack) < _DEEPEST:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    self._push(stack, os.open(name, flags, dir_fd=parent))
            elif status.st_nlink > 1:
                identity = (status.st_dev, status.st_ino)
                if identity in self._linked:
                    return 0
                self._linked.add(identity)
        except OSError:
            return 0  # gone or changed meanwhile
        return status.st_blocks * _BLOCK

    def _push(self, stack: list[tuple[int, list[str]]], descriptor: int) -> None:
        try:
            stack.append((descriptor, os.listdir(descriptor)))
        except OSError:
            os.close(descriptor)

    def _rest(self) -> None:
        self._entries += 1
        if self._entries % _BREATH == 0:
            now = time.monotonic()
            time.sleep(min(now - self._since, 0.1))
            self._since = time.monotonic()
