"""Container logs are rotated, as a kubelet does it (pkg/kubelet/logs/container_log_manager.go).

Theory of operation: every `interval` seconds the logs of running containers are looked at.
One that is too large is renamed, and the runtime is told to open a new one under the old
name; what was rotated before is compressed then, so that whoever still reads the newest
rotated one can finish.

    N.log                          the runtime writes here
    N.log.20060102-150405          the newest rotated one
    N.log.20060102-150405.gz       older ones; at most `files` together with the two above
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog

from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.wire import cri_pb2

log = structlog.get_logger()

_COMPRESSED, _UNFINISHED = ".gz", ".tmp"
_CALL = 30.0
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """`size` in bytes; 0 or less: logs are never rotated. `files` counts the log itself."""

    size: int = 10 << 20
    files: int = 5
    interval: float = 10.0


class LogRotation:
    def __init__(self, client: CriClient, known: Known, paths: Layout, policy: LogPolicy) -> None:
        self._client = client
        self._known = known
        self._paths = paths
        self._policy = policy

    async def run(self) -> None:
        if self._policy.size <= 0:
            return
        while True:
            await asyncio.sleep(self._policy.interval)
            logs = {
                ref.id: self._paths.log_file(ref.uid, ref.name, ref.attempt)
                for ref in list(self._known.containers.values())
                if ref.id not in self._known.ended
            }
            for container_id in await asyncio.to_thread(self._due, logs):
                await self._rotate(container_id, logs[container_id])

    def _due(self, logs: dict[str, Path]) -> list[str]:
        """Those that are too large, and those whose log somebody took away."""
        found = []
        for container_id, path in logs.items():
            try:
                if path.stat().st_size >= self._policy.size:
                    found.append(container_id)
            except FileNotFoundError:
                if path.parent.is_dir():  # a rotation was cut off after its first step
                    found.append(container_id)
            except OSError:
                continue
        return found

    async def _rotate(self, container_id: str, path: Path) -> None:
        try:
            renamed = await asyncio.to_thread(_move_away, path, self._policy.files)
        except OSError as error:
            log.warning("log_not_rotated", path=str(path), error=error.strerror)
            return
        try:
            await self._client.runtime.ReopenContainerLog(
                cri_pb2.ReopenContainerLogRequest(container_id=container_id), timeout=_CALL
            )
        except grpc.aio.AioRpcError as error:
            # Also where it has just ended: nobody writes to its log any more.
            log.debug("log_not_reopened", id=container_id, code=error.code().name)
            await asyncio.to_thread(_move_back, path, renamed)


def _move_away(path: Path, files: int) -> Path | None:
    """The log's new name; None where it is not there. Raises OSError."""
    if not path.exists():
        return None
    tidy(path, files)
    renamed = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    # Two within a second would be one: rename(2) replaces, link(2) does not.
    renamed.hardlink_to(path)
    path.unlink()
    return renamed


def _move_back(path: Path, renamed: Path | None) -> None:
    if renamed is not None and not path.exists():
        with contextlib.suppress(OSError):
            renamed.rename(path)


def tidy(path: Path, files: int) -> None:
    """Makes room for one more rotated log, and compresses those that are not. Blocking.
    Raises OSError."""
    kept = []
    there = {other.name for other in rotated(path)}
    for name in sorted(there):
        if name.endswith(_UNFINISHED) or name + _COMPRESSED in there:
            (path.parent / name).unlink(missing_ok=True)
        else:
            kept.append(path.parent / name)
    excess = max(len(kept) - max(files - 2, 0), 0)
    for old in kept[:excess]:
        old.unlink(missing_ok=True)
    for one in kept[excess:]:
        if one.suffix != _COMPRESSED:
            _compress(one)


def rotated(path: Path) -> Iterable[Path]:
    """All rotated files of a log, in no order."""
    return path.parent.glob(f"{path.name}.*")


def _compress(path: Path) -> None:
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with path.open("rb") as source, unfinished.open("wb") as target:
            os.fchmod(target.fileno(), path.stat().st_mode & 0o777)
            with gzip.GzipFile("", "wb", _LEVEL, target) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)
        unfinished.rename(path.with_name(path.name + _COMPRESSED))
    finally:
        unfinished.unlink(missing_ok=True)
    path.unlink()
