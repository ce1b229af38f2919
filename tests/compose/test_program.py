"""`vknode agent` as a program: its messages, exit statuses, and its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ControlPlaneHandle
from tests.support.until import until


def write(folder: Path, kubeconfig: Path, **changes: Any) -> Path:
    config = {
        "kubeconfig": str(kubeconfig),
        "name": f"agent-{folder.name.lower().replace('_', 'x')}",
        "pools": [{"name": "az1", "endpoint": f"unix:{folder}/pool.sock"}],
        "pool": {"unreachableAfterSeconds": 1},
    }
    file = folder / "agent.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    return file


def agent(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vknode", "agent", "--config", str(file), *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def kubeconfig(folder: Path, server: str, ca: Path | None, token: str) -> Path:
    cluster: dict[str, Any] = {"server": server}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
        )
    )
    return file


def test_a_wrong_key_is_named_with_its_file(short_path: Path) -> None:
    file = write(short_path, short_path / "nowhere", colour="blue")
    done = agent(file)
    assert done.returncode == 2
    assert f"Error: {file}: colour" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_right_file_is_said_to_be_right(short_path: Path) -> None:
    file = write(short_path, kubeconfig(short_path, "http://127.0.0.1:1", None, "t"))
    done = agent(file, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_absent_api_server_is_exit_4(short_path: Path) -> None:
    file = write(short_path, kubeconfig(short_path, "http://127.0.0.1:1", None, "t0psecret"))
    done = agent(file)
    assert done.returncode == 4, done.stderr
    assert "cannot connect to http://127.0.0.1:1" in done.stderr
    assert "check that the API server runs" in done.stderr
    assert "t0psecret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.cluster
def test_refused_credentials_are_exit_3(
    short_path: Path, control_plane: ControlPlaneHandle
) -> None:
    file = write(short_path, kubeconfig(short_path, control_plane.url, control_plane.ca, "wr0ng"))
    done = agent(file)
    assert done.returncode == 3, done.stderr
    assert "refused the credentials" in done.stderr
    assert "wr0ng" not in done.stderr


@pytest.mark.cluster
def test_missing_rights_are_exit_3_and_named(
    short_path: Path, control_plane: ControlPlaneHandle, namespace: str
) -> None:
    token = control_plane.kubectl("create", "token", "default", "-n", namespace).strip()
    file = write(short_path, kubeconfig(short_path, control_plane.url, control_plane.ca, token))
    done = agent(file)
    assert done.returncode == 3, done.stderr
    assert 'cannot get resource "namespaces"' in done.stderr
    assert "RBAC" in done.stderr


@pytest.mark.cluster
def test_a_port_in_use_is_exit_2(short_path: Path, control_plane: ControlPlaneHandle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = write(short_path, control_plane.kubeconfig, metrics={"listen": address})
        done = agent(file)
    assert done.returncode == 2, done.stderr
    assert f"metrics.listen: cannot listen on {address}" in done.stderr


@contextmanager
def started(file: Path) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "vknode", "agent", "--config", str(file)],
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[dict[str, Any]] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("{"):  # libraries may have something to say, too
                lines.append(json.loads(line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.cluster
def test_a_pool_that_is_away_is_said_and_sigterm_ends_all(
    short_path: Path, control_plane: ControlPlaneHandle
) -> None:
    with started(write(short_path, control_plane.kubeconfig)) as (process, lines):

        def events() -> list[str]:
            return [line["event"] for line in lines]

        until(lambda: "pool_unreachable" in events(), "pool_unreachable", show=events)
        until(lambda: "agent_ready" in events(), "agent_ready", show=events)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert lines[-1]["event"] == "agent_stopped"
