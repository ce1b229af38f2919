"""The real kubectl through a real API server to our kubelet API, whose Pods are local processes."""

import asyncio
import fcntl
import hashlib
import json
import os
import pty
import random
import signal
import struct
import termios
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ControlPlaneHandle
from tests.kubeletapi.conftest import make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import Rules
from vknode.kubeletapi import BackendError, ContainerView, KubeletApi, LogOptions, PodView

pytestmark = pytest.mark.cluster
MIB = 1024 * 1024


@dataclass
class Result:
    code: int
    out: bytes
    err: str


@dataclass
class Cluster:
    plane: ControlPlaneHandle
    namespace: str
    node: str
    backend: LocalBackend

    def command(self, *arguments: str) -> list[str]:
        return self.plane.kubectl.command("-n", self.namespace, *arguments)

    async def kubectl(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Result:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *self.command(*arguments),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **env},
        )
        async with asyncio.timeout(240):
            out, err = await child.communicate(stdin)
        assert child.returncode is not None
        return Result(child.returncode, out, err.decode())

    async def done(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        result = await self.kubectl(*arguments, stdin=stdin)
        assert result.code == 0, result.err
        return result.out

    async def apply(self, item: dict[str, Any]) -> None:
        await self.done("create", "-f", "-", stdin=json.dumps(item).encode())

    async def add_pod(self, name: str, *containers: ContainerView) -> None:
        views = containers or (ContainerView("main", "running", started=True),)
        images = [{"name": view.name, "image": "local"} for view in views]
        await self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {"nodeName": self.node, "containers": images},
            }
        )
        status = json.dumps({"status": {"phase": "Running"}})
        await self.done("patch", "pod", name, "--subresource=status", "-p", status)
        self.backend.add(name, *views, namespace=self.namespace)


@pytest.fixture(params=["websocket", "spdy"])
async def cluster(
    control_plane: ControlPlaneHandle,
    namespace: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Cluster]:
    """A node that declares that it takes WebSockets; and one that does not, to which the API
    server comes with SPDY/3.1, as all API servers did before 1.36."""
    backend = LocalBackend(tmp_path / "rootfs")
    backend.root.mkdir()
    authority = control_plane.control_plane.authority
    api = KubeletApi(backend, LocalNodes(), make_settings(authority), Rules())
    port = await api.start()
    made = Cluster(control_plane, namespace, f"node-{namespace}", backend)
    await made.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": made.node},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
                "declaredFeatures": (
                    ["ExtendWebSocketsToKubelet"] if request.param == "websocket" else []
                ),
            },
        }
    )
    try:
        yield made
    finally:
        await made.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        await made.done("delete", "node", made.node)
        await api.stop()


def log_of(*pieces: bytes) -> Any:
    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece

    return log


async def test_exec(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    result = await cluster.kubectl("exec", "web", "--", "sh", "-c", "echo out; echo err >&2")
    assert (result.code, result.out, result.err) == (0, b"out\n", "err\n")

    result = await cluster.kubectl("exec", "web", "--", "sh", "-c", "exit 7")
    assert result.code == 7
    assert "command terminated with exit code 7" in result.err

    result = await cluster.kubectl("exec", "-i", "web", "--", "wc", "-c", stdin=b"x" * 1000)
    assert (result.code, result.out.strip()) == (0, b"1000")

    result = await cluster.kubectl("exec", "web", "--", "no-such-program")
    assert result.code == 1
    assert "file not found in $PATH" in result.err


async def test_exec_failures(cluster: Cluster) -> None:
    await cluster.add_pod("web", ContainerView("main", "waiting", "ContainerCreating"))
    result = await cluster.kubectl("exec", "web", "--", "true")
    assert result.code == 1
    assert 'container not found ("main")' in result.err

    del cluster.backend.pods[cluster.namespace, "web"]
    result = await cluster.kubectl("exec", "web", "--", "true")
    assert result.code == 1
    assert "pod does not exist" in result.err


async def test_a_client_that_insists_on_spdy(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    result = await cluster.kubectl(
        *("exec", "-i", "web", "--", "sh", "-c", "cat; echo err >&2; exit 5"),
        stdin=b"in",
        KUBECTL_REMOTE_COMMAND_WEBSOCKETS="false",
    )
    assert (result.code, result.out) == (5, b"in")
    assert result.err.startswith("err\n")


async def test_50_mb_through_exec_and_back(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    data = random.Random(3).randbytes(50 * MIB)
    result = await cluster.kubectl("exec", "-i", "web", "--", "cat", stdin=data)
    assert result.code == 0, result.err
    assert hashlib.sha256(result.out).digest() == hashlib.sha256(data).digest()


async def test_a_terminal(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    master, slave = pty.openpty()
    resize(master, rows=30, columns=90)
    script = "stty size; read x; stty size; echo got:$x; exec cat"
    child = await asyncio.create_subprocess_exec(
        *cluster.command("exec", "-it", "web", "--", "bash", "-c", script),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    screen = Screen(master)
    try:
        # kubectl sends its size right after the start, so the shell may see 0 0 first.
        await screen.until(b"\r\n")
        resize(master, rows=40, columns=120)
        async with asyncio.timeout(60):
            while cluster.backend.sessions[0].size != (120, 40):
                child.send_signal(signal.SIGWINCH)  # it may not have listened to the first one yet
                await asyncio.sleep(0.05)
        os.write(master, b"hello\r")
        await screen.until(b"40 120\r\ngot:hello\r\n")
        os.write(master, b"\x03")
        async with asyncio.timeout(60):
            assert await child.wait() == 130
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        os.close(master)


class Screen:
    """What was written to the terminal so far."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._text = b""

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(60):
            while wanted not in self._text:
                self._text += await asyncio.to_thread(os.read, self._master, 4096)


def resize(fd: int, *, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def test_cp(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.add_pod("web")
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    (source / "data.bin").write_bytes(random.Random(4).randbytes(3 * MIB))
    (source / "name with space").write_text("x")
    inside = cluster.backend.root / "inside"
    await cluster.done("cp", str(source), f"web:{inside}")
    assert (inside / "data.bin").read_bytes() == (source / "data.bin").read_bytes()
    await cluster.done("cp", f"web:{inside}", str(back))
    for name in ("data.bin", "name with space"):
        assert (back / name).read_bytes() == (source / name).read_bytes()


async def test_logs_and_their_options(cluster: Cluster) -> None:
    await cluster.add_pod("web", ContainerView("main", "running", "", True, True))
    cluster.backend.logs = log_of(b"", b"one\n", b"two\n")
    assert await cluster.done("logs", "web") == b"one\ntwo\n"
    assert await cluster.done("logs", "web", "--limit-bytes=5") == b"one\nt"
    options = ("--tail=5", "--timestamps", "--since=60s", "-p")
    await cluster.done("logs", "web", *options)
    await cluster.done("logs", "web", "-f", "--since-time=2026-01-02T03:04:05Z")
    asked = cluster.backend.asked
    assert asked[1].limit_bytes == 5
    assert (asked[2].tail_lines, asked[2].timestamps, asked[2].previous) == (5, True, True)
    assert asked[2].since is not None
    assert asked[3].follow
    assert asked[3].since is not None
    assert asked[3].since.isoformat() == "2026-01-02T03:04:05+00:00"


async def test_a_followed_log(cluster: Cluster) -> None:
    next_line, over = asyncio.Event(), asyncio.Event()

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"first\n"
        await next_line.wait()
        yield b"second\n"
        await over.wait()

    await cluster.add_pod("web")
    cluster.backend.logs = log
    for leave in (False, True):
        next_line.clear()
        over.clear()
        cluster.backend.logs_closed.clear()
        child = await asyncio.create_subprocess_exec(
            *cluster.command("logs", "-f", "web"), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        async with asyncio.timeout(60):
            assert await child.stdout.readline() == b"first\n"
            next_line.set()
            assert await child.stdout.readline() == b"second\n"
            if leave:
                child.terminate()
                await child.wait()
                await cluster.backend.logs_closed.wait()
            else:
                over.set()
                assert await child.wait() == 0


async def test_100_mb_of_log(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    block = random.Random(5).randbytes(64 * 1024)
    cluster.backend.logs = log_of(*[block] * 1600)
    out = await cluster.done("logs", "web")
    assert hashlib.sha256(out).digest() == hashlib.sha256(block * 1600).digest()


@pytest.mark.parametrize(
    ("view", "arguments", "words"),
    [
        (
            ContainerView("main", "waiting", "ContainerCreating"),
            (),
            'container "main" in pod "web" is waiting to start: ContainerCreating',
        ),
        (
            ContainerView("main", "running", started=True),
            ("-p",),
            'previous terminated container "main" in pod "web" not found',
        ),
    ],
)
async def test_logs_that_are_not_there(
    cluster: Cluster, view: ContainerView, arguments: tuple[str, ...], words: str
) -> None:
    await cluster.add_pod("web", view)
    result = await cluster.kubectl("logs", "web", *arguments)
    assert result.code == 1
    assert result.err == f"Error from server (BadRequest): {words}\n"


async def test_a_pool_that_is_away(cluster: Cluster) -> None:
    await cluster.add_pod("web")
    cluster.backend.exec_error = BackendError("pool az1 is unavailable")
    result = await cluster.kubectl("exec", "web", "--", "true")
    assert result.code == 1
    assert "pool az1 is unavailable" in result.err
