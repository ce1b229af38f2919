"""promtool, and an agent's parts to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring.programs import require_promtool
from tests.monitoring.promtool import Promtool
from tests.monitoring.scene import Clock, Scene
from vknode.devcluster.programs.catalog import ProgramsMissing


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    clock = Clock()
    for module in ("leases", "metric_sources"):
        monkeypatch.setattr(f"vknode.agent.{module}.time", clock)
    return Scene(tmp_path, clock)


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    """Skips, with the command that provides it, if it is missing."""
    try:
        return Promtool(require_promtool(), tmp_path)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
