"""Mounts below a folder: found, detached, and never deleted through."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

MNT_DETACH = 2


def mounts_below(folder: Path) -> list[Path]:
    """Mount points below `folder`, the deepest and latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # mountinfo writes space, tab, newline and backslash in octal.
        point = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[4]))
        if point.is_relative_to(folder):
            found.append(point)
    return found[::-1]


def unmount_below(folder: Path) -> list[str]:
    """Detach every mount below `folder`; returns those that stay."""
    libc = ctypes.CDLL(None, use_errno=True)
    for point in mounts_below(folder):
        libc.umount2(os.fsencode(point), MNT_DETACH)
    return [f"mount {point}" for point in mounts_below(folder)]


def remove_tree(folder: Path) -> list[str]:
    """Delete a folder with all below it, unless something is still mounted there: a bind
    mount would lead the deletion into somebody else's files. Returns what stays."""
    if not folder.exists():
        return []
    mounted = mounts_below(folder)
    if mounted:
        return [f"folder {folder}: {point} is mounted below it" for point in mounted]
    shutil.rmtree(folder)
    return []
