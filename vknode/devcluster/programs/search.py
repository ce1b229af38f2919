"""Where programs are looked for: KUBEBUILDER_ASSETS, PATH, the cache. Nothing is fetched here.

A control-plane program is taken only at the pinned version. Parts of different
releases start well and then disagree in ways that look like vknode's faults.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vknode.devcluster.programs.catalog import (
    CNI_FOLDERS,
    CNI_PROGRAMS,
    KUBECTL_SKEW,
    SYSTEM_FOLDERS,
    Origin,
    Program,
)


@dataclass
class Findings:
    """What a search found, and what it passed by with the reason."""

    found: dict[str, Path] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def version_of(path: Path) -> str | None:
    """What the program says of its version (`v1.37.2`), or None if it cannot be asked."""
    arguments = ["version", "--client"] if path.name == "kubectl" else ["--version"]
    try:
        said = subprocess.run(
            [str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"\bv?(\d+\.\d+\.\d+(?:-[\w.]+)?)", said.stdout + said.stderr)
    return f"v{number.group(1)}" if number and said.returncode == 0 else None


def fits(program: Program, version: str | None) -> bool:
    """Whether a program of this version may be used: exactly the pinned one, and for
    kubectl `KUBECTL_SKEW` minor versions more or less."""
    if program.version is None:
        return True
    if version is None:
        return False
    if program.name != "kubectl":
        return version == program.version

    def minor(text: str) -> tuple[int, int]:
        major_text, minor_text = text.lstrip("v").split(".")[:2]
        return int(major_text), int(minor_text)

    ours, theirs = minor(program.version), minor(version)
    return ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= KUBECTL_SKEW


def search(
    programs: Iterable[Program],
    *,
    environment: Mapping[str, str],
    cache_folders: Iterable[Path] = (),
    version: Callable[[Path], str | None] = version_of,
    interpreter_folder: Path | None = None,
    cni_folders: Iterable[Path] = CNI_FOLDERS,
    system_folders: Iterable[Path] = SYSTEM_FOLDERS,
) -> Findings:
    """Look for each program in the documented order; the first that fits wins.

    `version` is asked only for programs outside the cache: what the cache holds
    was built or verified under its content key.
    """
    result = Findings()
    assets = environment.get("KUBEBUILDER_ASSETS")
    beside_python = interpreter_folder or Path(sys.executable).parent
    caches = list(cache_folders)
    for program in programs:
        places: list[tuple[str, Path | None]] = []
        if program.name in CNI_PROGRAMS:
            places += [("CNI folder", folder / program.name) for folder in cni_folders]
        else:
            if assets:
                places.append(("KUBEBUILDER_ASSETS", Path(assets) / program.name))
            if program.origin is Origin.WHEEL:
                # The wheel puts kubectl beside the interpreter, which is on PATH only
                # where the virtual environment has been activated.
                places.append(("Python environment", beside_python / program.name))
            on_path = shutil.which(program.name, path=environment.get("PATH", ""))
            places.append(("PATH", Path(on_path) if on_path else None))
            if program.origin is Origin.DEBIAN:
                places += [("system", folder / program.name) for folder in system_folders]
            places += [("cache", folder / program.name) for folder in caches]
        for where, path in places:
            if path is None or not path.is_file():
                continue
            if where != "cache" and program.version is not None:
                said = version(path)
                if not fits(program, said):
                    result.skipped.append(
                        f"{path} ({where}) is {said or 'of unknown version'}, "
                        f"not {program.version}: skipped"
                    )
                    continue
            result.found[program.name] = path
            break
    return result
