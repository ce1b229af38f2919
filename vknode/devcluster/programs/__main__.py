"""`python -m vknode.devcluster.programs`: have every program of the development cluster.

Needs only the standard library, so that `make` can start it as its very first
thing, in the background, while pip is still at work. Idempotent; a second call
waits for the first.
"""

from __future__ import annotations

import argparse
import sys

from vknode.devcluster.programs.catalog import CONTROL_PLANE, ProgramsMissing, catalog
from vknode.devcluster.programs.progress import Progress
from vknode.devcluster.programs.provide import DEFAULT, locate, provide


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all programs are there, 1 some could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m vknode.devcluster.programs",
        description="Finds, downloads or builds what `vknode dev` runs.",
    )
    parser.add_argument("names", nargs="*", help="programs (default: control plane and containerd)")
    parser.add_argument(
        "--control-plane", action="store_true", help="only what --runtime sim needs"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave this one out (kubectl, where pip is about to bring it)",
    )
    parser.add_argument("--where", action="store_true", help="print where each is; fetch nothing")
    parser.add_argument(
        "--no-download", action="store_true", help="do not try the download site: build"
    )
    options = parser.parse_args(arguments)
    names = options.names or list(CONTROL_PLANE if options.control_plane else DEFAULT)
    names = [name for name in names if name not in options.without]
    unknown = [name for name in [*names, *options.without] if name not in catalog()]
    if unknown:
        parser.error(f"unknown program {', '.join(unknown)}; known: {', '.join(catalog())}")
    if options.where:
        findings = locate(names)
        for name in names:
            print(f"{name}\t{findings.found.get(name, 'missing')}")
        for note in findings.skipped:
            print(note, file=sys.stderr)
        return 0 if len(findings.found) == len(names) else 1
    progress = Progress()
    try:
        found = provide(names, progress=progress, allow_download=not options.no_download)
    except ProgramsMissing as problem:
        progress.close()
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.close()
        print("stopped; what is built so far stays in the cache", file=sys.stderr)
        return 130
    for name in names:
        print(f"{name}\t{found[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
