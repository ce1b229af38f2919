"""The same files by /logs/ of the real kubelet and of ours, answer by answer."""

from __future__ import annotations

import http.client
import os
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import pytest

from tests.support.agents import agent_with
from tests.support.fixtures import Running, have
from tests.support.realkubelet import PROGRAMS, real_kubelet
from vknode.kubeletapi.file_answers import http_date

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

NOON = 1_700_000_000
#: Headers that tell a client something about the file.
TOLD = (
    *("Accept-Ranges", "Content-Length", "Content-Range", "Content-Type", "Last-Modified"),
    *("Allow", "Location"),
)


@dataclass(frozen=True)
class Answerer:
    """One node's /logs/, through its API server. `below`: where the files are there."""

    running: Running
    node: str
    below: str

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[object, ...]:
        return self.request(self.below, path, method, headers)

    def request(
        self, below: str, path: str, method: str, headers: dict[str, str]
    ) -> tuple[object, ...]:
        plane = self.running.cluster.control_plane
        admin = plane.authority.issue("reader", "reader", organizations=["system:masters"])
        context = ssl.create_default_context(cafile=str(plane.authority.cert))
        context.load_cert_chain(admin.cert, admin.key)
        host, _, port = plane.url.removeprefix("https://").partition(":")
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=60)
        base = f"/api/v1/nodes/{self.node}/proxy/logs{below}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, base + path, headers=named)
            response = connection.getresponse()
            told = {name: response.headers.get(name) for name in TOLD}
            if told["Location"] is not None:
                told["Location"] = told["Location"].replace(base, "BASE")
            # An API server writes its own prefix into pages, and with it the node's name.
            return response.status, response.read().replace(base.encode(), b"BASE"), told
        finally:
            connection.close()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where a kubelet looks, which no setting of its changes."""
    folder = Path("/var/log") / f"vknode-test-{uuid.uuid4().hex[:8]}"
    (folder / "pods" / "web").mkdir(parents=True)
    try:
        (folder / "text").write_text("first\nsecond\n")
        (folder / "a b?#'<:.x").write_text("a strange name")
        (folder / "packed").write_bytes(b"\x1f\x8b\x08\x00 and so on")
        (folder / "binary").write_bytes(bytes(range(256)) * 4000)
        (folder / "empty").touch()
        (folder / "pods" / "web" / "0").write_text("of a Pod\n")
        (folder / "link").symlink_to("text")
        (folder / "way").symlink_to("pods/web")
        for path in (folder / "text", folder / "pods", folder / "empty"):
            os.utime(path, (NOON, NOON))
        yield folder
    finally:
        rmtree(folder)


@pytest.fixture(scope="module")
def kubelets(folder: Path) -> Iterator[Answerer]:
    with real_kubelet(have(PROGRAMS)) as kubelet:
        yield Answerer(kubelet.running, kubelet.node, f"/{folder.name}")


@pytest.fixture(scope="module")
def ours(cri: Running, folder: Path) -> Iterator[Answerer]:
    with agent_with(cri, "kubelet", {"systemLogs": str(folder)}):
        yield Answerer(cri, "az1-a", "")


PATHS = [
    *("/", "/pods/", "/pods/web/", "/way/", "/missing", "/missing/", "/text/below", "/empty"),
    *("/text", "/link", "/pods/web/0", "/way/0", "/a%20b%3F%23'%3C:.x", "/packed", "/binary"),
    *("/pods", "/way", "/text/", "/pods?query=kubelet", "/?query=kubelet", "/text?tailLines=1"),
]


@pytest.mark.parametrize("path", PATHS)
def test_the_same_files(ours: Answerer, kubelets: Answerer, path: str) -> None:
    assert ours.ask(path) == kubelets.ask(path)


@pytest.mark.parametrize(
    "wanted",
    [
        *("bytes=0-3", "bytes=6-", "bytes=-7", "bytes=-700", "bytes=2-2", "bytes=13-", "bytes=5-2"),
        *("bytes=x", "lines=1-2", "bytes=,1-2,", "bytes=0-2,50-60"),
    ],
)
@pytest.mark.parametrize("path", ["/text", "/empty"])
def test_the_same_parts(ours: Answerer, kubelets: Answerer, path: str, wanted: str) -> None:
    assert ours.ask(path, Range=wanted) == kubelets.ask(path, Range=wanted)


@pytest.mark.parametrize(
    "headers",
    [
        {"If_Modified_Since": http_date(NOON)},
        {"If_Modified_Since": http_date(NOON - 1)},
        {"If_Modified_Since": "nonsense"},
        {"If_Unmodified_Since": http_date(NOON - 1)},
        {"If_None_Match": "*"},
        {"If_None_Match": '"tag"', "If_Modified_Since": http_date(NOON)},
        {"If_Match": "*"},
        {"If_Match": '"tag"'},
        {"Range": "bytes=1-", "If_Range": http_date(NOON)},
        {"Range": "bytes=1-", "If_Range": http_date(NOON + 1)},
        {"Range": "bytes=1-", "If_Range": '"tag"'},
    ],
)
@pytest.mark.parametrize("path", ["/text", "/pods/"])
def test_the_same_conditions(
    ours: Answerer, kubelets: Answerer, path: str, headers: dict[str, str]
) -> None:
    assert ours.ask(path, **headers) == kubelets.ask(path, **headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_the_same_methods(ours: Answerer, kubelets: Answerer, method: str) -> None:
    assert ours.ask("/text", method)[0] == kubelets.ask("/text", method)[0]


@pytest.mark.parametrize("path", ["", "?query=kubelet"])
def test_it_begins_at_the_same_place(ours: Answerer, kubelets: Answerer, path: str) -> None:
    told = [one.request("", path, "GET", {}) for one in (ours, kubelets)]
    assert told[0] == told[1]
    assert told[0][0] == 307
