"""The few mount calls that volumes need, straight from libc. Linux only.

They are quick system calls on local file systems and are made on the event loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 0x2, 0x4, 0x8, 0x1000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x2, 0x8
_TMPFS_MAGIC = 0x01021994
_AT_FDCWD = -100
# openat2(2): the number is the same on every architecture.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    result = _LIBC.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def mount_tmpfs(target: Path, *, size: int | None, mode: int) -> None:
    """A tmpfs of at most `size` bytes (None: half of the memory). Raises OSError."""
    options = f"mode={mode:o}" + (f",size={size}" if size is not None else "")
    _mount("tmpfs", str(target), "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(descriptor: int, target: Path) -> None:
    """Bind what an open descriptor stands for, whatever its path has become."""
    _mount(f"/proc/self/fd/{descriptor}", str(target), None, _MS_BIND, None)


def unmount(target: Path) -> None:
    """Detach a mount; nothing there is no error. Raises OSError."""
    if _LIBC.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), str(target))


def unmount_below(folder: Path) -> None:
    """Detach every mount at or below a folder, the innermost first. Raises OSError."""
    prefix = os.fsencode(folder)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = line.split(b" ", 5)[4]
        if b"\\" in point:  # octal escapes of spaces, tabs, newlines and backslashes
            point = point.decode("unicode_escape").encode("latin-1")
        if point == prefix or point.startswith(prefix + b"/"):
            found.append(point)
    for point in reversed(found):
        unmount(Path(os.fsdecode(point)))


def is_tmpfs(path: Path) -> bool:
    """Whether the file system below a path lives in memory."""
    buffer = ctypes.create_string_buffer(256)
    if _LIBC.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:8], "little") == _TMPFS_MAGIC


def open_in_root(root: int, path: str) -> int:
    """O_PATH descriptor of `path`, with symlinks kept inside the open folder `root`.

    Raises OSError; ENOSYS on kernels before 5.6.
    """
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    descriptor: int = _LIBC.syscall(
        _SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return descriptor
