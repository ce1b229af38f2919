"""Runs of the suite: a cluster of its own for each, and what all of them came to."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.images import make_images
from tests.conformance.programs import Tools
from tests.conformance.results import Result
from tests.conformance.specs import Outcome, State, together
from tests.conformance.suite import Selection, Suite
from tests.conformance.targets import PROGRAMS, target
from vknode.devcluster.imagelayout import Archive
from vknode.devcluster.programs.cache import cache_root
from vknode.devcluster.programs.progress import Progress, spell
from vknode.devcluster.programs.provide import provide


@dataclass(frozen=True)
class Wanted:
    """One call of the command, checked."""

    targets: tuple[str, ...]
    selection: Selection
    repeat: int
    processes: int
    whole: bool  # everything, so that it is kept and shown in docs/
    out: Path
    keep: bool = False  # the same for a part, beside what is known of the rest


class Session:
    """Clusters and runs of the suite on them, with the same tools and images."""

    def __init__(self, tools: Tools, progress: Progress) -> None:
        self._progress = progress
        self._tools = tools
        self._images: Archive = make_images(self._tools, cache_root(os.environ).parent / "images")

    def run(self, name: str, wanted: Wanted) -> Result:
        """All runs of one target. Raises what a cluster's start raises, and ReportUnusable."""
        programs = provide(PROGRAMS[name], progress=self._progress)
        outcomes: list[dict[str, Outcome]] = []
        seconds = 0.0
        for number in range(1, wanted.repeat + 1):
            folder = wanted.out / (name if wanted.repeat == 1 else f"{name}-{number}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            title = name if wanted.repeat == 1 else f"{name}, run {number} of {wanted.repeat}"
            begun = time.monotonic()

            def show(done: int, failed: int, title: str = title, begun: float = begun) -> None:
                took = spell(time.monotonic() - begun)
                self._progress.update(f"{title}: {done} specs done, {failed} failed, after {took}")

            self._progress.say(f"{title}: starting the cluster; logs go to {folder}")
            with target(name, programs, self._images) as cluster:
                self._progress.say(f"{title}: running; to look on: KUBECONFIG={cluster.kubeconfig}")
                suite = Suite(self._tools, folder, wanted.processes, show)
                try:
                    ends = suite.run(wanted.selection, cluster.kubeconfig, cluster.kubectl)
                finally:
                    shutil.copytree(cluster.logs, folder / "logs", dirs_exist_ok=True)
            seconds += time.monotonic() - begun
            outcomes.append(ends)
            show(len(ends), sum(one.state is State.FAILED for one in ends.values()))
        self._progress.close()
        return Result(together(outcomes), wanted.repeat, seconds / wanted.repeat / 60)
