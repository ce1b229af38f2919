"""`make conformance` and its parts: `python -m tests.conformance`.

The last line of its output is JSON, for whoever counts.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.conformance import quick, results, table
from tests.conformance.programs import provide_tools
from tests.conformance.results import Result, Results
from tests.conformance.runs import Session, Wanted
from tests.conformance.specs import ReportUnusable, State
from tests.conformance.suite import Selection, exactly
from tests.conformance.targets import KUBELET, TARGETS, VKNODE
from vknode.devcluster.cluster import Refused, refuse_without_privileges
from vknode.devcluster.images import ImagesUnavailable
from vknode.devcluster.kubectl import KubectlFailed
from vknode.devcluster.network import NetworkFailed
from vknode.devcluster.process import ChildFailed
from vknode.devcluster.programs.catalog import ProgramsMissing, kubernetes_version
from vknode.devcluster.programs.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "conformance.json"
PAGE = ROOT / "docs" / "conformance.md"
REASONS = Path(__file__).with_name("reasons.yaml")
OUT = ROOT / "out" / "conformance"

#: Node conformance, in-place resize that is not marked so, and kubectl.
FOCUS = r"\[sig-node\].*(\[NodeConformance\]|Pod InPlace Resize)|\[sig-cli\]"
#: Off by default upstream, known to fail now and then, or for a scheduler or a cluster alone.
SKIP = r"\[Alpha\]|\[Flaky\]|(InPlace|sig-cli).*\[Serial\]"
#: Specs at a time, on two cores: most of them wait most of the time.
PROCESSES = 12

FAILED, REFUSED, INTERRUPTED = 1, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a spec passes on the kubelet and not on vknode, or if nothing was
    run; 3 if it cannot be run here; 130 if interrupted."""
    options = _parser().parse_args(arguments)
    _end_in_order()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    progress = Progress()
    try:
        known = results.load(RESULTS, kubernetes_version())
        if options.update_quick:
            quick.write(known)
            return 0
        if options.render:
            PAGE.write_text(table.render(known, table.read_reasons(REASONS)))
            return 0
        if options.programs:
            provide_tools(progress)
            return 0
        refuse_without_privileges()
        wanted = _wanted(options)
        session = Session(provide_tools(progress), progress)
        begun = time.monotonic()
        fresh = Results(known.kubernetes)
        for name in wanted.targets:
            fresh = fresh.having(name, session.run(name, wanted))
            if wanted.whole or wanted.keep:
                put = known.having if wanted.whole else known.adding
                known = put(name, fresh.targets[name])
                RESULTS.write_text(results.dump(known))
                PAGE.write_text(table.render(known, table.read_reasons(REASONS)))
        return tell(fresh, known, (time.monotonic() - begun) / 60)
    except KeyboardInterrupt:
        progress.close()
        print("stopped; everything has been ended", file=sys.stderr)
        return INTERRUPTED
    except (Refused, ProgramsMissing, ImagesUnavailable) as problem:
        progress.close()
        print(problem, file=sys.stderr)
        return REFUSED
    except (
        ChildFailed,
        KubectlFailed,
        NetworkFailed,
        ReportUnusable,
        results.ResultsUnusable,
        table.ReasonsUnusable,
    ) as problem:
        progress.close()
        print(problem, file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Runs upstream's node conformance tests on vknode and on a real kubelet. "
        "Without options: all of them on both, which takes about an hour and writes "
        "docs/conformance.md.",
    )
    parser.add_argument(
        "--target", choices=[*TARGETS, "both"], help="which node agent (default: both)"
    )
    parser.add_argument("--focus", metavar="REGEX", help="only specs whose names match")
    parser.add_argument("--skip", metavar="REGEX", help="no specs whose names match")
    parser.add_argument(
        "--keep", action="store_true", help="write a part's results into docs/conformance.md, too"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="pass N times in a row")
    parser.add_argument(
        "--procs", type=int, default=PROCESSES, metavar="N", help=f"at a time ({PROCESSES})"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for logs and reports")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--quick", action="store_true", help="about 10 minutes of vknode, as in CI")
    alone.add_argument(
        "--update-quick", action="store_true", help="choose --quick's specs by the last whole run"
    )
    alone.add_argument(
        "--render", action="store_true", help="only write the page again, after a new reason"
    )
    alone.add_argument("--programs", action="store_true", help="only build what lacks")
    return parser


def _wanted(options: argparse.Namespace) -> Wanted:
    chosen = options.target or (VKNODE if options.quick else "both")
    targets = TARGETS if chosen == "both" else (chosen,)
    part = options.quick or options.focus or options.skip
    if options.quick:
        selection = Selection(exactly(quick.read()), options.skip or "")
    else:
        selection = Selection(options.focus or FOCUS, options.skip or SKIP)
    return Wanted(
        targets=targets,
        selection=selection,
        repeat=max(1, options.repeat),
        processes=max(1, options.procs),
        whole=not part,
        keep=options.keep,
        out=options.out.resolve(),
    )


def tell(fresh: Results, known: Results, minutes: float) -> int:
    """Say what came out, the last line for programs. What was not run now counts as it did in
    the last whole run."""
    kubelet = fresh.targets.get(KUBELET) or known.targets.get(KUBELET) or Result({})
    vknode = fresh.targets.get(VKNODE)
    ran = {name for result in fresh.targets.values() for name in result.outcomes}
    for name, result in fresh.targets.items():
        for spec, one in sorted(result.outcomes.items()):
            if one.state is not State.PASSED:
                print(f"{name}: {one.state}: {spec}: {results.cause(one.message)}")
    passed = vknode.passed() if vknode is not None else set()
    only = sorted((kubelet.passed() & ran) - passed) if vknode is not None else []
    told = {
        "kubernetes": fresh.kubernetes,
        "specs": len(ran),
        "kubelet_passed": len(kubelet.passed() & ran),
        "vknode_passed": len(passed) if vknode is not None else None,
        "kubelet_only": only,
        "minutes": round(minutes, 1),
    }
    print(json.dumps(told), flush=True)
    return FAILED if only or not ran else 0


def _end_in_order() -> None:
    """SIGTERM and SIGHUP as Ctrl-C, which a shell's background job would otherwise ignore."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)  # a second one would stop the clearing up
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
