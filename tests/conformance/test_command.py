"""`python -m tests.conformance`, as one types it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.programs import require_tools
from tests.conformance.targets import PROGRAMS, VKNODE
from tests.support.fixtures import have
from tests.support.until import until
from vknode.devcluster import leftovers
from vknode.devcluster.cluster import Refused, refuse_without_privileges
from vknode.devcluster.programs.catalog import ProgramsMissing

pytestmark = [pytest.mark.cluster, pytest.mark.containerd, pytest.mark.timeout(900)]

COMMAND = [sys.executable, "-m", "tests.conformance", "--target", "vknode"]


@pytest.fixture(autouse=True)
def _tools() -> None:
    have(PROGRAMS[VKNODE])
    try:
        refuse_without_privileges()
        require_tools()
    except (Refused, ProgramsMissing) as problem:
        pytest.skip(str(problem))


def state_of(said: str) -> Path | None:
    """The folder of the cluster that the command says it runs."""
    found = re.search(r"KUBECONFIG=(\S+)/kubeconfig", said)
    return Path(found.group(1)) if found else None


def nothing_left(folder: Path) -> bool:
    after = leftovers.take(folder)
    return not (after.processes or after.mounts or after.files)


def test_a_part_is_run_and_summed_up_in_the_last_line(tmp_path: Path) -> None:
    focus = "hostname and hostnameOverride fields will have hostnameOverride as hostname"
    done = subprocess.run(
        [*COMMAND, "--focus", focus, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["specs"] == last["vknode_passed"] == 1 and last["kubelet_only"] == []
    assert (tmp_path / "vknode" / "logs" / "agent.log").exists()
    folder = state_of(done.stderr)
    assert folder is not None and nothing_left(folder)


def test_ctrl_c_ends_the_suite_and_the_cluster(tmp_path: Path) -> None:
    log = tmp_path / "vknode" / "suite.log"
    with subprocess.Popen(
        # Runs for minutes if it is let.
        [*COMMAND, "--focus", "Probing container", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(
                lambda: log.exists() and "Running in parallel" in log.read_text(),
                "specs run",
                timeout=400,
            )
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
        finally:
            process.terminate()
    assert process.returncode == 130, said
    assert "everything has been ended" in said
    folder = state_of(said)
    assert folder is not None and nothing_left(folder)


def test_a_focus_that_fits_nothing_is_a_failure(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--focus", "no spec has this name", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["specs"] == 0
