"""The agent of a running cluster, for a while with another configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import yaml

from tests.support.fixtures import Running
from tests.support.until import until

#: What an agent logs when it has seen all Pods and its pools.
READY = "agent_ready"
#: What the API server says of nodes on loopback, as those of simulated sandboxes are.
NOT_PROXIED = "address not allowed"


@contextmanager
def agent_with(running: Running, section: str, changes: Mapping[str, Any]) -> Iterator[None]:
    """Starts the agent anew with these keys of one section of its configuration, and in the end
    with what it had. Both times it is ready, and its nodes answer, before this goes on."""
    files = running.cluster.agent_files
    assert files is not None
    before = files.config.read_text()
    content = yaml.safe_load(before)
    content[section] = {**content.get(section, {}), **changes}
    try:
        _start(running, yaml.safe_dump(content, sort_keys=False))
        yield
    finally:
        _start(running, before)


def _start(running: Running, config: str) -> None:
    cluster, thread = running.cluster, running.thread
    assert cluster.agent_files is not None
    thread.run(cluster.kill_agent())
    before = running.agent_log().count(READY)
    cluster.agent_files.config.write_text(config)
    thread.run(cluster.start_agent())
    until(lambda: running.agent_log().count(READY) > before, "the agent is ready", timeout=60)
    for node in cluster.node_names:
        until(partial(_answers, running, node), f"{node} answers", timeout=90)


def _answers(running: Running, node: str) -> bool:
    path = f"/api/v1/nodes/{node}/proxy/healthz"
    asked = running.kube.run("get", "--raw", path, check=False)
    return asked.stdout == "ok" or NOT_PROXIED in asked.stderr
