"""What must survive a restart of the pool: the specs it has accepted.

One folder a sandbox, `FOLDER/UID/`, readable by the owner only:
`spec.pb` holds a small header (who, when) and the spec; it is written whole and
renamed into place before CreateSandbox answers. `state.json` is only there once
something of the header has changed (a deletion, an end).

There is no fsync. A crash of the process loses nothing that was renamed; a crash of
the machine takes the containers with it, and what then is missing here is what no
longer runs. A torn file cannot be taken for a spec (length and checksum). Specs carry
secrets: put FOLDER on a tmpfs (/run) where they must not reach a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from vknode.pool.engine.steps import Persisted
from vknode.pool.errors import RETRYABLE, PoolFailure
from vknode.pool.v1 import spec_pb2

log = structlog.get_logger()

_MAGIC = b"vknode1\n"
_HEAD = struct.Struct("!III")  # header length, spec length, CRC-32 of both


@dataclass(frozen=True, slots=True)
class Stored:
    spec: spec_pb2.SandboxSpec
    state: Persisted


class Store(Protocol):
    """Keeps specs and states by UID. Writers raise OSError, with the path in it."""

    def load(self) -> list[Stored]: ...

    def save(self, spec: spec_pb2.SandboxSpec, state: Persisted) -> None: ...

    def save_state(self, uid: str, state: Persisted) -> None: ...

    def remove(self, uid: str) -> None: ...


class MemoryStore:
    """For runtimes whose sandboxes end with the process."""

    def __init__(self) -> None:
        self._kept: dict[str, Stored] = {}

    def load(self) -> list[Stored]:
        return list(self._kept.values())

    def save(self, spec: spec_pb2.SandboxSpec, state: Persisted) -> None:
        self._kept[spec.uid] = Stored(spec, state)

    def save_state(self, uid: str, state: Persisted) -> None:
        if uid in self._kept:
            self._kept[uid] = Stored(self._kept[uid].spec, state)

    def remove(self, uid: str) -> None:
        self._kept.pop(uid, None)


class FileStore:
    """Files below `folder`, which nobody else may write to. Calls take some 100 µs and
    block: on the event loop that is cheaper than a thread, and the order of writes
    stays that of the calls."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder cannot be made."""
        self._root = folder
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[Stored]:
        """Everything readable; what is not is said, and set aside as `spec.pb.broken`
        until the next start. A spec whose state alone is unreadable is kept as it was
        accepted."""
        found = []
        for folder in sorted(self._root.iterdir()):
            path = folder / "spec.pb"
            try:
                stored = _decode(path.read_bytes())
            except FileNotFoundError:
                # Cut off between the folder and its spec, or in a removal.
                shutil.rmtree(folder, ignore_errors=True)
                continue
            except (ValueError, TypeError, DecodeError) as error:
                log.error("stored_spec_unreadable", path=str(path), error=type(error).__name__)
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".pb.broken"))
                continue
            try:
                state = _state((folder / "state.json").read_bytes())
                stored = Stored(stored.spec, state)
            except FileNotFoundError:
                pass
            except (ValueError, TypeError) as error:
                log.error("stored_state_unreadable", folder=str(folder), error=type(error).__name__)
            found.append(stored)
        return found

    def save(self, spec: spec_pb2.SandboxSpec, state: Persisted) -> None:
        folder = self._root / spec.uid
        new = not folder.exists()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            _write(folder / "spec.pb", _encode(spec, state))
            with contextlib.suppress(FileNotFoundError):
                (folder / "state.json").unlink()  # the new header says it all
        except OSError:
            if new:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def save_state(self, uid: str, state: Persisted) -> None:
        _write(self._root / uid / "state.json", json.dumps(asdict(state)).encode())

    def remove(self, uid: str) -> None:
        folder = self._root / uid
        # The spec first: without it the rest means nothing.
        for name in ("spec.pb", "state.json"):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _encode(spec: spec_pb2.SandboxSpec, state: Persisted) -> bytes:
    header = json.dumps(asdict(state)).encode()
    body = spec.SerializeToString()
    checksum = zlib.crc32(body, zlib.crc32(header))
    return b"".join((_MAGIC, _HEAD.pack(len(header), len(body), checksum), header, body))


def _decode(data: bytes) -> Stored:
    """Raises ValueError, TypeError or DecodeError for anything but a whole file."""
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start or not data.startswith(_MAGIC):
        raise ValueError("not a stored spec")
    header_length, spec_length, checksum = _HEAD.unpack_from(data, len(_MAGIC))
    header = data[start : start + header_length]
    body = data[start + header_length :]
    if len(body) != spec_length or zlib.crc32(body, zlib.crc32(header)) != checksum:
        raise ValueError("cut off or damaged")
    return Stored(spec_pb2.SandboxSpec.FromString(body), _state(header))


def _state(data: bytes) -> Persisted:
    """Also of a later version, whose further fields are safe to miss. Raises ValueError
    or TypeError."""
    known = {field.name for field in fields(Persisted)}
    found = {name: value for name, value in dict(json.loads(data)).items() if name in known}
    found["killing"] = tuple(found.get("killing", ()))  # JSON has lists only
    return Persisted(**found)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, mode 0600."""
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def not_stored(error: OSError) -> PoolFailure:
    """What the agent is told of a writer's error."""
    return PoolFailure(
        RETRYABLE, f"the pool cannot store the spec: {error.strerror} ({error.filename})"
    )
