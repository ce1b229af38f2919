"""Folder changes by inotify: one instance for all who watch through one `Inotify`.

The folders hold only few files (of one container's logs, say), so any change wakes the
watchers, and they look for themselves what it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE_SELF = 0x2, 0x80, 0x100, 0x400
_IN_CLOSE_WRITE = 0x8
_IN_DELETE, _IN_Q_OVERFLOW, _IN_IGNORED, _IN_ONLYDIR = 0x200, 0x4000, 0x8000, 0x01000000
_MASK = (
    _IN_MODIFY
    | _IN_CLOSE_WRITE
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_DELETE_SELF
    | _IN_ONLYDIR
)
_HEADER = struct.Struct("iIII")


class Inotify:
    """Wakes `asyncio.Event`s; the instance lives while anybody watches."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._watchers: dict[int, list[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watch(self, folder: Path) -> Iterator[asyncio.Event]:
        """An event that is set at every change in the folder; the watcher clears it.

        Raises OSError (ENOSPC: the user's limit of watches is reached).
        """
        if self._descriptor < 0:
            self._descriptor = _check(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), folder)
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        changed = asyncio.Event()
        try:
            number = _check(
                _LIBC.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK), folder
            )
        except OSError:
            self._close_if_unused()
            raise
        self._watchers.setdefault(number, []).append(changed)
        try:
            yield changed
        finally:
            watchers = self._watchers.get(number)
            if watchers is not None and changed in watchers:
                watchers.remove(changed)
                if not watchers:
                    del self._watchers[number]
                    _LIBC.inotify_rm_watch(self._descriptor, number)
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._watchers and self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            number, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size + length
            if mask & _IN_Q_OVERFLOW:
                for watchers in self._watchers.values():
                    for changed in watchers:
                        changed.set()
            for changed in self._watchers.get(number, ()):
                changed.set()
            if mask & _IN_IGNORED:  # the folder is gone; the kernel may reuse the number
                self._watchers.pop(number, None)


def _check(result: int, folder: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    return result
