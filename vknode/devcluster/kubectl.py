"""Runs the real kubectl against the development cluster."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class KubectlFailed(Exception):
    """kubectl ended with another status than 0; the text carries what it said."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl bound to one kubeconfig. Its own cache of discovery lies in `cache`, so
    that it neither reads nor fills the user's."""

    program: Path
    kubeconfig: Path
    cache: Path

    def command(self, *arguments: str) -> list[str]:
        """The argv for these arguments."""
        return [
            str(self.program),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.cache}",
            *arguments,
        ]

    def run(
        self,
        *arguments: str,
        input: bytes | None = None,
        check: bool = True,
        timeout: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end, blocking. With `check`, raises KubectlFailed for a status
        other than 0; raises subprocess.TimeoutExpired after `timeout` seconds."""
        done = subprocess.run(
            self.command(*arguments),
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment,
        )
        if check and done.returncode != 0:
            raise KubectlFailed(
                f"kubectl {' '.join(arguments)}: exit status {done.returncode}: "
                f"{done.stderr.decode(errors='replace').strip()}"
            )
        return done

    def __call__(self, *arguments: str, input: bytes | None = None, timeout: float = 60.0) -> str:
        """Standard output of a run that must succeed."""
        return self.run(*arguments, input=input, timeout=timeout).stdout.decode()

    async def call(self, *arguments: str, input: bytes | None = None, timeout: float = 60.0) -> str:
        """As calling it, without blocking the event loop."""
        return await asyncio.to_thread(self, *arguments, input=input, timeout=timeout)
