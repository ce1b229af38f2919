"""The programs' event loop: asyncio's own, or uvloop's where it is asked for."""

from __future__ import annotations

import asyncio
import sys

import pytest

from vknode.loop import LoopUnavailable, run_async


async def _module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_asyncio_unless_asked_otherwise() -> None:
    assert run_async(_module_of_the_loop(), {}) == "asyncio"
    assert run_async(_module_of_the_loop(), {"VKNODE_LOOP": "asyncio"}) == "asyncio"


def test_uvloop_where_it_is_asked_for() -> None:
    pytest.importorskip("uvloop", reason="pip install 'vknode[fast]'")
    assert run_async(_module_of_the_loop(), {"VKNODE_LOOP": "uvloop"}) == "uvloop"


def test_a_loop_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # importing it now fails
    with pytest.raises(LoopUnavailable, match=r"pip install 'vknode\[fast\]'"):
        run_async(_module_of_the_loop(), {"VKNODE_LOOP": "uvloop"})
    with pytest.raises(LoopUnavailable, match="must be asyncio or uvloop"):
        run_async(_module_of_the_loop(), {"VKNODE_LOOP": "trio"})


def test_a_programs_failure_passes_through() -> None:
    async def fails() -> None:
        raise LookupError("as asyncio.run")

    with pytest.raises(LookupError, match=r"as asyncio\.run"):
        run_async(fails())
