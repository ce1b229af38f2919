"""Runs upstream's test binary against a cluster, several specs at a time, with ginkgo."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.programs import Tools
from tests.conformance.specs import Outcome, ReportUnusable, Spec, parse_outcomes, parse_specs

#: Seconds that a suite which was told to end gets for its own clearing up.
GRACE = 30.0


@dataclass(frozen=True)
class Selection:
    """Which specs are run: those whose names match `focus` and not `skip` (regular expressions
    in Go's words; an empty `skip` skips none)."""

    focus: str
    skip: str = ""


def exactly(names: Iterable[str]) -> str:
    """The focus of exactly these specs."""
    return "|".join(f"{_quoted(name)}$" for name in names)


def _quoted(text: str) -> str:
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


@dataclass(frozen=True)
class Suite:
    """The test binary with its runner. `folder` holds its report, its log and its waste."""

    tools: Tools
    folder: Path
    processes: int
    #: Told now and then of what is done, as (specs done, specs failed).
    progress: Callable[[int, int], None]

    def announce(self) -> list[Spec]:
        """All specs there are, with their labels; nothing is run."""
        report = self.folder / "announced.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                str(self.tools.e2e),
                "--ginkgo.dry-run",
                "--ginkgo.silence-skips",
                f"--ginkgo.json-report={report}",
                "--kubeconfig=/dev/null",
            ],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return parse_specs(report.read_text())

    def run(
        self, selection: Selection, kubeconfig: Path, kubectl: Path, flags: Sequence[str] = ()
    ) -> dict[str, Outcome]:
        """Run the selected specs; `flags` are more of the test binary's own.

        Raises ReportUnusable, with the log's end, if the suite did not run. On
        KeyboardInterrupt it is told to end, and has ended when that is raised again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        report, log = self.folder / "report.json", self.folder / "suite.log"
        report.unlink(missing_ok=True)
        command = [
            str(self.tools.ginkgo),
            f"--procs={self.processes}",
            "--no-color",
            "--silence-skips",
            "--timeout=6h",
            f"--output-dir={self.folder}",
            f"--json-report={report.name}",
            f"--focus={selection.focus}",
            *([f"--skip={selection.skip}"] if selection.skip else []),
            str(self.tools.e2e),
            "--",
            f"--kubeconfig={kubeconfig}",
            f"--kubectl-path={kubectl}",
            "--provider=skeleton",
            "--dump-logs-on-failure=false",
            f"--e2e-output-dir={self.folder}",
            *flags,
        ]
        with log.open("wb") as out:
            # A session of its own: Ctrl-C must reach us alone, and its workers end with it.
            process = subprocess.Popen(
                [*_ending_with_us(), *command],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=2.0)
                        break
                    self.progress(*counted(log.read_text(errors="replace")))
            finally:
                _end(process)
        if not report.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ReportUnusable(f"ginkgo wrote no report; its log {log} ends:\n{tail}")
        return parse_outcomes(report.read_text())


def counted(log: str) -> tuple[int, int]:
    """Of ginkgo's output so far: specs done, and specs failed."""
    failed = len(re.findall(r"^• \[(?:FAILED|PANICKED|TIMEDOUT|INTERRUPTED)\]", log, re.M))
    return log.count("•"), failed


def _ending_with_us() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _end(process: subprocess.Popen[bytes]) -> None:
    """End ginkgo and its workers, if they still run: first politely."""
    deadline = time.monotonic() + GRACE
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=max(1.0, deadline - time.monotonic()))
