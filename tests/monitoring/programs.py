"""promtool, Prometheus' own tool for rules, built from `gomodule/` into the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from vknode.devcluster.programs.catalog import Origin, Program, ProgramsMissing, pinned
from vknode.devcluster.programs.progress import Progress
from vknode.devcluster.programs.provide import build_folder, provide_from

GOMODULE = Path(__file__).resolve().parent / "gomodule"
COMMAND = "python -m tests.monitoring --programs"
# Without it each cloud's service discovery would be built in.
TAGS = "remove_all_sd"


def program() -> Program:
    return Program(
        "promtool",
        Origin.GO,
        "github.com/prometheus/prometheus/cmd/promtool",
        pinned("github.com/prometheus/prometheus", GOMODULE),
        240,
        module=GOMODULE,
        tags=TAGS,
    )


def provide_promtool(progress: Progress) -> Path:
    """Found or built, safely in several processes at once. Raises ProgramsMissing, OSError."""
    return provide_from(GOMODULE, [program()], progress=progress)["promtool"]


def require_promtool() -> Path:
    """Where it is; raises ProgramsMissing, with the command that provides it."""
    path = build_folder(os.environ, GOMODULE, TAGS) / "promtool"
    if not path.is_file():
        raise ProgramsMissing(f"promtool is missing; `{COMMAND}` provides it")
    return path
