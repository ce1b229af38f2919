"""docs/kubelet-openapi.yaml has what the router has, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubeletapi.hostile.document import METHODS, document
from tests.kubeletapi.hostile.harmless import Harmless
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import Rules
from vknode.kubeletapi import KubeletApi, KubeletApiSettings


@pytest.mark.parametrize("system_logs", [False, True])
def test_every_route_is_in_the_document_and_every_path_of_it_is_a_route(
    system_logs: bool,
) -> None:
    nowhere = Path("/nonexistent")
    settings = KubeletApiSettings(
        nowhere, nowhere, nowhere, system_logs=nowhere if system_logs else None
    )
    api = KubeletApi(Harmless(), LocalNodes(), settings, Rules())
    routed = set()
    for route in api._app.router.routes():
        assert route.resource is not None
        methods = METHODS if route.method == "*" else {route.method}
        routed |= {(route.resource.canonical, method) for method in methods}
    written = {
        (path, key.upper())
        for path, item in document(system_logs=system_logs)["paths"].items()
        for key in item
        if key.upper() in METHODS
    }
    assert written == routed
