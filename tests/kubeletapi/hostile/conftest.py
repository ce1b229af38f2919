"""A server for each module, on both loops that a program may run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubeletapi.conftest import LOOPS
from tests.kubeletapi.hostile.world import World, serving


@pytest.fixture(scope="module", params=list(LOOPS))
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with serving(tmp_path_factory.mktemp("hostile"), LOOPS[request.param]) as served:
        yield served
