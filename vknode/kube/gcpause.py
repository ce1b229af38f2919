"""Keeps the garbage collector out of the way of a large list.

Decoding 10,000 objects allocates containers far faster than they die, so the collector runs
over and over and finds nothing. Off for the length of the list, then the survivors are frozen:
later collections need not walk them. Nests, because two reflectors may list at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Switches the collector off; the outermost use restores what was before."""
    global _depth, _was_enabled  # noqa: PLW0603 - the collector's switch is global, so is our count
    if _depth == 0:
        _was_enabled = gc.isenabled()
        gc.disable()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0 and _was_enabled:
            gc.enable()


def freeze_survivors() -> None:
    """Moves everything alive now out of the collector's sight. Use only after large lists."""
    gc.freeze()
