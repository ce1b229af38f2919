"""`kubectl get --raw /api/v1/nodes/NODE/proxy/logs/` where the agent was asked to show a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents import agent_with
from tests.support.fixtures import Running
from tests.support.kube import Kube

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

A, B = "az1-a", "az2-b"


@dataclass(frozen=True)
class Shown:
    folder: Path
    kube: Kube

    def read(self, path: str, node: str = A) -> str:
        return self.kube.out("get", "--raw", f"/api/v1/nodes/{node}/proxy/logs{path}")

    def refusal(self, path: str) -> str:
        url = f"/api/v1/nodes/{A}/proxy/logs{path}"
        done = self.kube.run("get", "--raw", url, check=False)
        assert done.returncode != 0
        return done.stderr


@pytest.fixture(scope="module")
def shown(cri: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("system-logs")
    (folder / "pods").mkdir()
    (folder / "pods" / "a b.log").write_text("of a Pod\n")
    (folder / "agent.log").write_text("first\nsecond\n")
    (folder / "out").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe")
    with agent_with(cri, "kubelet", {"systemLogs": str(folder)}):
        yield Shown(folder, cri.kube)


def test_an_operator_finds_and_reads_a_log(shown: Shown) -> None:
    assert '<a href="agent.log">agent.log</a>' in shown.read("/")
    assert '<a href="a%20b.log">a b.log</a>' in shown.read("/pods/")
    assert shown.read("/agent.log") == "first\nsecond\n"
    assert shown.read("/pods/a%20b.log") == "of a Pod\n"
    with (shown.folder / "agent.log").open("a") as file:
        file.write("third\n")
    assert shown.read("/agent.log") == "first\nsecond\nthird\n"


def test_every_node_shows_the_same_folder(shown: Shown) -> None:
    assert shown.read("/", node=A) == shown.read("/", node=B)


def test_a_folder_without_its_slash_is_found(shown: Shown) -> None:
    assert shown.read("/pods") == shown.read("/pods/")


def test_a_big_file_arrives_whole(shown: Shown) -> None:
    lines = "".join(f"line {number} of a log\n" for number in range(500_000))
    (shown.folder / "big.log").write_text(lines)
    assert shown.read("/big.log") == lines


@pytest.mark.parametrize("path", ["/missing", "/out", "/pipe", "/%2e%2e/%2e%2e/etc/hostname"])
def test_what_is_not_there_and_what_is_outside(shown: Shown, path: str) -> None:
    assert "could not find the requested resource" in shown.refusal(path)


def test_a_node_says_that_it_has_it(shown: Shown) -> None:
    told = shown.kube.out("get", "--raw", f"/api/v1/nodes/{A}/proxy/configz")
    config = json.loads(told)["kubeletconfig"]
    assert (config["enableSystemLogHandler"], config["enableSystemLogQuery"]) == (True, False)
    assert str(shown.folder) not in told
