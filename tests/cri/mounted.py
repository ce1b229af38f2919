"""Mounts that a test makes, and which are gone after it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vknode.pool.runtimes.cri import mounts


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """`target` shows `source` inside the block."""
    found = os.open(source, os.O_PATH)
    try:
        mounts.bind(found, target)
    finally:
        os.close(found)
    try:
        yield
    finally:
        mounts.unmount(target)


@contextlib.contextmanager
def sharing(folder: Path, *, shared: bool = True) -> Iterator[None]:
    """`folder` is a mount of its own, shared as systemd has all of a host's, or private."""
    with bound(folder, folder):
        mounts._mount("none", str(folder), None, 1 << (20 if shared else 18), None)
        yield


def mounted_below(folder: Path) -> list[str]:
    """Mount points at or below a folder."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]
