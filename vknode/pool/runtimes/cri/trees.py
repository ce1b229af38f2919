"""Removes folders whatever containers have made in them. Blocking: for a thread.

The standard library's rmtree recurses, so that a container could make a folder too deep to
be ever removed. Here what lies too deep is moved up first; no link is followed, and nothing
that is mounted is entered: what it shows is a volume of the host, perhaps, and not ours.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vknode.pool.runtimes.cri import mounts

_DEEPEST = 64
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})


def remove(folder: Path) -> None:
    """The folder and all in it. Not there: no error.

    Raises OSError; EBUSY where something is mounted at or below it, which is left alone.
    """
    try:
        above = os.open(folder.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        root = mounts.open_folder_here(above, folder.name)
    except FileNotFoundError:
        return
    finally:
        os.close(above)
    try:
        moved = 0
        while names := os.listdir(root):  # noqa: PTH208  # an open folder
            for name in names:
                moved = _remove_below(root, name, moved)
    finally:
        os.close(root)
    folder.rmdir()


def _remove_below(root: int, name: str, moved: int) -> int:
    """One entry of the root. Returns how many have been moved up to it so far."""
    # Open folders from the root down, each with its name in the one before.
    stack: list[tuple[int, str]] = []
    try:
        _enter_or_unlink(stack, root, name)
        while stack:
            here, own_name = stack[-1]
            parent = stack[-2][0] if len(stack) > 1 else root
            names = os.listdir(here)  # noqa: PTH208
            if not names:
                os.close(here)
                stack.pop()
                os.rmdir(own_name, dir_fd=parent)
                continue
            for child in names:
                if len(stack) >= _DEEPEST and _is_folder(here, child):
                    moved += 1
                    os.rename(child, f".moved-up-{moved}", src_dir_fd=here, dst_dir_fd=root)
                elif _enter_or_unlink(stack, here, child):
                    break  # the rest is listed again when it is gone
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)
    return moved


def _is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _enter_or_unlink(stack: list[tuple[int, str]], parent: int, name: str) -> bool:
    try:
        stack.append((mounts.open_folder_here(parent, name), name))
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        os.unlink(name, dir_fd=parent)
        return False
    return True
