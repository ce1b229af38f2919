"""The cache of built and downloaded programs, keyed by what they were made from.

`$XDG_CACHE_HOME/vknode/programs/<key>/NAME`. A file appears there by an atomic
rename only, so that what exists is whole. One process fills a key at a time,
held by an flock, which the kernel lets go when the process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vknode.devcluster.programs.catalog import GOMODULE, go_architecture, kubernetes_version


def cache_root(environment: Mapping[str, str]) -> Path:
    """Where vknode keeps programs, by the XDG base directory rules."""
    base = environment.get("XDG_CACHE_HOME")
    home = environment.get("HOME") or str(Path.home())
    # XDG: a relative path is invalid and to be ignored.
    folder = Path(base) if base and Path(base).is_absolute() else Path(home) / ".cache"
    return folder / "vknode" / "programs"


def content_key(go_version: str, flags: tuple[str, ...], module: Path = GOMODULE) -> str:
    """The key of a build: the module's requirements and sums and its own sources, if it has
    any, the flags, the compiler."""
    digest = hashlib.sha256()
    for part in (
        (module / "go.mod").read_bytes(),
        (module / "go.sum").read_bytes(),
        *(source.read_bytes() for source in sorted(module.rglob("*.go"))),
        "\0".join(flags).encode(),
        go_version.encode(),
        go_architecture().encode(),
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:20]


def download_key() -> str:
    """The key of officially released programs."""
    return f"release-{kubernetes_version()}-{go_architecture()}"


@contextlib.contextmanager
def filling(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the sole right to put programs into `folder`; while another process has it,
    `on_wait` is called once a second. Raises OSError when the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Looked at again, not blocked on: what the other one says is to be shown.
                on_wait()
                time.sleep(1.0)
        yield
    finally:
        os.close(handle)


def place(made: Path, folder: Path, name: str) -> Path:
    """Move a finished file into the cache under its name, atomically."""
    made.chmod(0o755)
    target = folder / name
    made.replace(target)
    return target
