"""Environment from a file that an earlier container wrote (fileKeyRef). `parse` is pure.

The format is the kubelet's (pkg/kubelet/util/env): a strict part of a shell's.

    # a comment
    KEY='value, over several lines
    where it must'   # another comment

A value stands between single quotes, which it cannot contain. White space before "=" is
an error; after it, it makes the value empty, as a shell would.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vknode.pool.runtimes.cri import mounts
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_BLANK = b" \t"
# A line longer than a kubelet's scanner takes, and a file that is no environment any more.
_MAX_LINE = 64 * 1024
_MAX_FILE = 1 << 20
_REASON = "CreateContainerConfigError"


class EnvFileError(ValueError):
    """The file is not in the format."""


class Parsed:
    """A file's variables, each as it stands first, up to where it is not in the format."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.error: EnvFileError | None = None

    def value(self, key: bytes) -> bytes:
        """Empty where it is not there. Raises EnvFileError for what stands before it; what
        follows does not matter."""
        if key not in self.values and self.error is not None:
            raise self.error
        return self.values.get(key, b"")


def parse(data: bytes) -> Parsed:
    found = Parsed()
    try:
        for name, value in _variables(data):
            found.values.setdefault(name, value)
    except EnvFileError as error:
        found.error = error
    return found


def _variables(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    lines = _lines(data)
    for number, line in lines:
        line = line.lstrip(_BLANK)
        if not line or line.startswith(b"#"):
            continue
        name, equals, value = line.partition(b"=")
        if not equals or not name or name[-1:] in (b" ", b"\t"):
            raise EnvFileError(f"line {number} is not KEY='value'")
        if value[:1] in (b" ", b"\t"):
            yield name, b""
            continue
        if not value.startswith(b"'"):
            raise EnvFileError(f"line {number}: the value must be between single quotes")
        found, rest, closed = [], value[1:], False
        while not closed:
            part, quote, after = rest.partition(b"'")
            found.append(part)
            closed = bool(quote)
            if not closed:
                number, rest = next(lines, (0, b""))
                if not number:
                    raise EnvFileError("a single quote is not closed")
        after = after.lstrip(_BLANK)
        if after and not after.startswith(b"#"):
            raise EnvFileError(f"line {number}: there is something after the closing quote")
        yield name, b"\n".join(found)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """From 1, without their ends."""
    pieces = data.split(b"\n")
    if not pieces[-1]:
        pieces.pop()
    for number, piece in enumerate(pieces, 1):
        if len(piece) >= _MAX_LINE:
            raise EnvFileError(f"line {number} is too long")
        yield number, piece.removesuffix(b"\r")


class EnvFiles:
    """Reads values for one start; each file once, however many variables come from it.
    Blocking: for a thread, a file may be large."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[Path, str], Parsed] = {}

    def read(self, volume: Path, file: spec_pb2.EnvFile) -> bytes | None:
        """The variable's value; None where it is optional and not there.

        Raises Failure("CreateContainerConfigError"). Links in the volume are followed inside
        it only, and nothing but an ordinary file is read.
        """
        try:
            value = self._file(volume, file.path).value(file.key.encode())
        except FileNotFoundError:
            if file.optional:
                return None
            raise Failure(_REASON, "couldn't parse env file") from None
        except (OSError, EnvFileError):
            raise Failure(_REASON, "couldn't parse env file") from None
        if value:
            return value
        if file.optional:
            return None
        raise Failure(
            _REASON,
            f'environment variable key "{file.key}" not found in file "{volume / file.path}"',
        )

    def _file(self, volume: Path, path: str) -> Parsed:
        found = self._parsed.get((volume, path))
        if found is None:
            found = self._parsed[volume, path] = parse(_content(volume, path))
        return found


def _content(volume: Path, path: str) -> bytes:
    root = os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = mounts.open_in_root(root, path)
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise EnvFileError("not a file")
        descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    with os.fdopen(descriptor, "rb") as opened:
        data = opened.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise EnvFileError("too long")
    return data
