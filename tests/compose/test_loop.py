"""The programs' event loop: uvloop's where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
import sys

import pytest

from vknode.loop import run_async


async def _module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_uvloop_runs_a_program_where_it_is_installed() -> None:
    pytest.importorskip("uvloop", reason="pip install 'vknode[fast]'")
    assert run_async(_module_of_the_loop()) == "uvloop"


def test_without_uvloop_asyncio_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # importing it now fails
    assert run_async(_module_of_the_loop()) == "asyncio"


def test_a_programs_failure_passes_through() -> None:
    async def fails() -> None:
        raise LookupError("as asyncio.run")

    with pytest.raises(LookupError, match=r"as asyncio\.run"):
        run_async(fails())
