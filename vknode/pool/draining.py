"""Which cells are to be emptied: one empty file for each in `STATE_DIR/draining/`.

So it outlives the pool's process, and whoever may write there may ask for it
(`vknode pool-drain`). The pool watches the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from vknode.pool.inotify import Inotify

log = structlog.get_logger()

_FOLDER = "draining"


class UnknownCell(Exception):
    """The pool has no such cell; the text names it and those that it has."""


def prepare(state_dir: Path, cells: Iterable[str]) -> None:
    """Makes the folder, and writes down which cells there are. Raises OSError."""
    folder = state_dir / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    (state_dir / "cells").write_text("".join(f"{name}\n" for name in cells))


def wanted(state_dir: Path) -> frozenset[str]:
    """The cells that are to be empty. Raises OSError."""
    return frozenset(file.name for file in (state_dir / _FOLDER).iterdir())


def change(state_dir: Path, cells: Iterable[str], *, drain: bool) -> None:
    """Ask for it, or take it back. Raises UnknownCell, and OSError where no pool has used
    this directory or it may not be written."""
    known = (state_dir / "cells").read_text().split()
    for cell in cells:
        if cell not in known:
            raise UnknownCell(f"this pool has no cell {cell!r}; it has {', '.join(known)}")
    for cell in cells:
        file = state_dir / _FOLDER / cell
        if drain:
            file.touch()
        else:
            file.unlink(missing_ok=True)


async def follow(state_dir: Path, drain: Callable[[frozenset[str]], None]) -> None:
    """Calls `drain` with the names now and after each change, for ever."""
    folder = state_dir / _FOLDER
    before: frozenset[str] | None = None

    def look() -> None:
        nonlocal before
        names = wanted(state_dir)
        if names == before:
            return
        if names or before:
            log.info("cells_draining", cells=sorted(names))
        before = names
        drain(names)

    trouble = ""
    while True:
        try:
            # A new watch each time: another folder may be there by now.
            with Inotify().watch(folder) as changed:
                look()
                await changed.wait()
            trouble = ""
        except OSError as error:
            # Somebody took the folder away, or nothing more can be watched.
            if trouble != str(error):
                log.warning("draining_not_watched", error=error.strerror)
                trouble = str(error)
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                look()
            await asyncio.sleep(1)
