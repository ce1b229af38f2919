"""Debian packages for the container side, by apt-get, as root only.

The versions are the Debian release's own. Their services are kept from
starting: the development cluster runs its own containerds, and a system-wide
one that nobody asked for would be a surprise.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.progress import Progress

#: Consulted by invoke-rc.d and deb-systemd-invoke; exit status 101 forbids the action.
POLICY = Path("/usr/sbin/policy-rc.d")


def can_install() -> bool:
    """Whether apt-get is here and we may use it."""
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install the packages. Raises ProgramsMissing with apt's last lines."""
    names = list(dict.fromkeys(packages))
    progress.say(f"installing {' '.join(names)} with apt-get")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Two provisioning runs at once: wait for the other's dpkg lock, do not fail.
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q", "-y"]
    command = [*apt, "install", "--no-install-recommends", *names]
    with _no_services():
        done = _run(command, env)
        if done.returncode != 0:
            # The package lists are absent (fresh image) or too old to find the files.
            updated = _run([*apt, "update"], env)
            done = _run(command, env) if updated.returncode == 0 else updated
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise ProgramsMissing(f"apt-get could not install {' '.join(names)}:\n{tail}")


def _run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Forbid package scripts to start services, unless the machine has its own policy."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\n# placed by vknode while it installs packages\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
