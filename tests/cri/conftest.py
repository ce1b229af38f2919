"""A real containerd for the folder's tests, and runtimes on it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cri.containerds import Containerd, containerd
from tests.cri.harness import Harness
from vknode.devcluster.programs.catalog import CONTAINERD, ProgramsMissing
from vknode.devcluster.programs.provide import require


@pytest.fixture(scope="session")
def containerd_programs() -> dict[str, Path]:
    """containerd and what belongs to it; skips, with the command that provides them."""
    try:
        return require(CONTAINERD)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def shared_containerd(containerd_programs: dict[str, Path]) -> Iterator[Containerd]:
    """One containerd for all tests that do not stop it."""
    with containerd(containerd_programs) as running:
        yield running


@pytest.fixture
async def harness(shared_containerd: Containerd, short_path: Path) -> AsyncIterator[Harness]:
    """A connected `CriRuntime` of the test's own, with its events being collected; all its
    sandboxes are removed afterwards."""
    made = Harness(shared_containerd.socket, short_path / "pool", f"p{uuid.uuid4().hex[:8]}")
    await made.connect()
    yield made
    await made.clear()
    await made.disconnect()
