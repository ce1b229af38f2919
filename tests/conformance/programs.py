"""What the conformance tests need besides a development cluster: upstream's test binary and
its helpers, built from `gomodule/` into the user's cache, and a few Debian programs for
the images."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vknode.devcluster.programs import cache, debian
from vknode.devcluster.programs.catalog import Origin, Program, ProgramsMissing, kubernetes_version
from vknode.devcluster.programs.progress import Progress
from vknode.devcluster.programs.provide import (
    build_folder,
    provide,
    provide_from,
    require,
)

GOMODULE = Path(__file__).resolve().parent / "gomodule"
E2E = "e2e.test"
COMMAND = "python -m tests.conformance --programs"

_TEST = "k8s.io/kubernetes/test/"


def programs() -> tuple[Program, ...]:
    """What is built, the small ones first. Seconds are those after the control plane's build."""
    version = kubernetes_version()
    return (
        Program("ginkgo", Origin.GO, "github.com/onsi/ginkgo/v2/ginkgo", version, 10),
        Program("agnhost", Origin.GO, _TEST + "images/agnhost", version, 30),
        Program("nnp", Origin.GO, _TEST + "images/nonewprivs", version, 2),
        Program("sh", Origin.GO, "vknode.dev/conformance/sh", version, 2),
        Program(E2E, Origin.GO, _TEST + "e2e", version, 260, test=True),
    )


#: Debian programs that go into images, with their packages.
DEBIAN = {
    "bash": "bash",
    "curl": "curl",
    "printenv": "coreutils",
    "dig": "bind9-dnsutils",
    "hostname": "hostname",
    "nc.openbsd": "netcat-openbsd",
}


@dataclass(frozen=True)
class Tools:
    """Where everything is. `debian` and `busybox` are for images only."""

    ginkgo: Path
    e2e: Path
    agnhost: Path
    nnp: Path
    sh: Path
    busybox: Path
    debian: dict[str, Path]


def provide_tools(progress: Progress) -> Tools:
    """Find or make all of it, safely in several processes at once.

    Raises ProgramsMissing with the reason, and OSError for an unusable cache."""
    made = provide_from(GOMODULE, programs(), progress=progress)
    found = provide(["busybox"], progress=progress)
    _debian(progress)
    return _tools(made, found["busybox"])


def require_tools() -> Tools:
    """All of it, where it is; nothing is made or fetched. Raises ProgramsMissing with all
    that lacks and the command that provides it."""
    folder = build_folder(os.environ, GOMODULE)
    made = {one.name: folder / one.name for one in programs()}
    missing = [name for name, path in made.items() if not path.is_file()] + _lacking()
    if missing:
        raise ProgramsMissing(f"missing: {', '.join(missing)}; `{COMMAND}` provides them")
    return _tools(made, require(["busybox"])["busybox"])


def _tools(made: dict[str, Path], busybox: Path) -> Tools:
    return Tools(
        ginkgo=made["ginkgo"],
        e2e=made[E2E],
        agnhost=made["agnhost"],
        nnp=made["nnp"],
        sh=made["sh"],
        busybox=busybox,
        debian={name: Path(shutil.which(name) or name) for name in DEBIAN},
    )


def _debian(progress: Progress) -> None:
    if _lacking():
        if not debian.can_install():
            packages = " ".join(DEBIAN[name] for name in _lacking())
            raise ProgramsMissing(f"install as root, for the test images: {packages}")
        folder = cache.cache_root(os.environ) / "apt"
        with cache.filling(
            folder, lambda: progress.update("another process installs packages: waiting")
        ):
            if missing := _lacking():
                debian.install([DEBIAN[name] for name in missing], progress)


def _lacking() -> list[str]:
    return [name for name in DEBIAN if shutil.which(name) is None]
