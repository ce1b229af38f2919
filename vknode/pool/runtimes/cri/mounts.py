"""The few mount calls that volumes need, straight from libc. Linux only.

They are quick system calls on local file systems, which may be made on the event loop;
where a path of the host is opened or bound they may hang with its file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_BIND = 0x1000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x2, 0x8
_TMPFS_MAGIC = 0x01021994
_AT_FDCWD = -100
# These numbers are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 0x1, 0x4
_MS_SLAVE = 1 << 19
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS = 0x01, 0x02
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x04, 0x08, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
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


# Whether the kernel knows it (Linux 6.3): what is in memory for its secrets' sake must not
# be swapped out.
_noswap = [True]


def mount_tmpfs(target: Path, *, size: int | None, mode: int, group: int | None = None) -> None:
    """A tmpfs of at most `size` bytes (None: half of the memory), its root of this mode and
    group from the first moment. Raises OSError."""
    options = f"mode={mode:o}" + (f",size={size}" if size is not None else "")
    options += f",gid={group}" if group is not None else ""
    if _noswap[0]:
        try:
            _mount("tmpfs", str(target), "tmpfs", 0, options + ",noswap")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _noswap[0] = False  # each try would leave a line in the kernel's log
        else:
            return
    _mount("tmpfs", str(target), "tmpfs", 0, options)


def bind(descriptor: int, target: Path) -> None:
    """Bind what an open descriptor stands for, whatever its path has become. What is mounted
    below either shows in the other, where the host's mounts are shared, and goes in both."""
    _mount(f"/proc/self/fd/{descriptor}", str(target), None, _MS_BIND, None)


def pin(descriptor: int, target: Path, *, below: bool = True) -> None:
    """Bind what an open descriptor (O_PATH) stands for, with all that is mounted `below` it.

    What is mounted there later shows, too; but nothing that happens to the copy reaches the
    original, least of all its end: to detach a copy that shares its mounts would detach the
    host's own below it. Raises OSError; ENOSYS on kernels before 5.12.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    flags |= _AT_RECURSIVE if below else 0
    tree = _call(_SYS_OPEN_TREE, target, descriptor, b"", flags)
    try:
        attributes = _MountAttr(propagation=_MS_SLAVE)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        how = _AT_EMPTY_PATH | _AT_RECURSIVE
        _call(_SYS_MOUNT_SETATTR, target, tree, b"", how, ctypes.byref(attributes), size)
        where = os.fsencode(target)
        _call(_SYS_MOVE_MOUNT, target, tree, b"", _AT_FDCWD, where, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


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


def follows_host(descriptor: int) -> bool:
    """Whether what is mounted later below an open file (O_PATH) can show elsewhere."""
    wanted = str(_mount_id(descriptor))
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        number, *rest = line.split()
        if number == wanted:
            tags = rest[5 : rest.index("-")]
            return any(tag.startswith(("shared:", "master:")) for tag in tags)
    return False


def is_tmpfs(path: Path) -> bool:
    """Whether the file system below a path lives in memory."""
    buffer = ctypes.create_string_buffer(256)
    if _LIBC.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:8], "little") == _TMPFS_MAGIC


def open_in_root(root: int, path: str) -> int:
    """O_PATH descriptor of `path`, with symlinks kept inside the open folder `root`: what
    is absolute starts there, and ".." stops there.

    Raises OSError; ENOSYS on kernels before 5.6.
    """
    return _open(root, path, _RESOLVE_IN_ROOT)


def open_beneath(root: int, path: str) -> int:
    """As `open_in_root`, but a link that leads out of the folder is an error (EXDEV)."""
    return _open(root, path, _RESOLVE_BENEATH)


def open_no_links(path: Path, parent: int = _AT_FDCWD) -> int:
    """O_PATH descriptor of exactly this path, from an open folder where it is relative.
    Raises OSError: ELOOP where any part of it is a link."""
    try:
        # For a folder: it may be one that is mounted when it is looked at.
        return _open(parent, str(path), _RESOLVE_NO_SYMLINKS, os.O_PATH | os.O_DIRECTORY)
    except NotADirectoryError:
        return _open(parent, str(path), _RESOLVE_NO_SYMLINKS)


def open_folder_here(parent: int, name: str) -> int:
    """A folder of the open folder `parent`, to read: no link, and nothing that is mounted.

    Raises OSError: EBUSY where something is mounted there, ENOTDIR or ELOOP where it is no
    folder.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return _open(parent, name, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS, flags)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _mounted(name) from None
        if error.errno != errno.ENOSYS:
            raise
    # An older kernel: a Pod must be removable there, too.
    found = os.open(name, flags | os.O_CLOEXEC, dir_fd=parent)
    if _mount_id(found) != _mount_id(parent):
        os.close(found)
        raise _mounted(name)
    return found


def _mounted(name: str) -> OSError:
    return OSError(errno.EBUSY, "something is mounted there", name)


def _mount_id(descriptor: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    raise OSError(errno.ENOSYS, "the kernel does not tell mounts")


def _open(root: int, path: str, resolve: int, flags: int = os.O_PATH) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve | _RESOLVE_NO_MAGICLINKS)
    arguments = (os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    return _call(_SYS_OPENAT2, path, root, *arguments)


def _call(number: int, about: str | Path, *arguments: Any) -> int:
    """A system call that libc may not have a name for."""
    result: int = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(about))
    return result
