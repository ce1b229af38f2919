"""`python -m tests.monitoring`: writes the table of metrics into docs/monitoring.md; with
`--programs` builds promtool for the tests instead."""

from __future__ import annotations

import sys

from tests.monitoring.documents import PAGE, with_table
from tests.monitoring.programs import provide_promtool
from vknode.devcluster.programs.catalog import ProgramsMissing
from vknode.devcluster.programs.progress import Progress


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 1 if promtool cannot be had."""
    if arguments == ["--programs"]:
        progress = Progress()
        try:
            provide_promtool(progress)
        except ProgramsMissing as problem:
            progress.close()
            print(problem, file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(with_table(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
