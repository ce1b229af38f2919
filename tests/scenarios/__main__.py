"""`python -m tests.scenarios --target kubelet|vknode [-k PATTERN]`: play scenarios by hand."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.scenarios import record
from tests.scenarios.batch import AT_ONCE, Outcome, play_all
from tests.scenarios.format import TARGETS, BadScenario, load
from tests.scenarios.targets import Opened, opened
from vknode.devcluster.programs.catalog import ProgramsMissing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("-k", metavar="PATTERN", default="", help="names that match this only")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N")
    parser.add_argument("--hold", action="store_true", help="keep the cluster until Ctrl-C")
    parser.add_argument("--kubeconfig", type=Path, help="use this running cluster")
    options = parser.parse_args()
    try:
        scenarios = [one for one in load(options.k) if one.runs_on(options.target)]
    except BadScenario as problem:
        print(problem, file=sys.stderr)
        return 2
    if not scenarios and not options.hold:
        print(f"no scenario for {options.target} matches {options.k!r}", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        word = "FAILED" if outcome.problem else "passed"
        print(f"{word} {outcome.seconds:5.1f} s  {outcome.scenario.name}", flush=True)
        if outcome.problem:
            print(outcome.problem + "\n", flush=True)

    begun = time.monotonic()
    try:
        with opened(options.target, options.kubeconfig) as there:
            if scenarios:
                work = play_all(there.target, scenarios, done, at_once=options.at_once)
                there.run(work)
            if options.target == "kubelet":
                record.write(outcomes, node_info(there))
            if options.hold:
                print(f"kubeconfig: {there.target.kube.kubeconfig}", flush=True)
                with suppress(KeyboardInterrupt):
                    signal.pause()
    except ProgramsMissing as problem:
        print(problem, file=sys.stderr)
        return 3
    failed = sorted(one.scenario.name for one in outcomes if one.problem)
    print(
        json.dumps(
            {
                "target": options.target,
                "scenarios": len(outcomes),
                "passed": len(outcomes) - len(failed),
                "failed": failed,
                "minutes": round((time.monotonic() - begun) / 60, 1),
            }
        )
    )
    return 1 if failed else 0


def node_info(there: Opened) -> dict[str, str]:
    nodes = json.loads(there.target.kube.out("get", "nodes", "-o", "json"))
    info: dict[str, str] = nodes["items"][0]["status"]["nodeInfo"]
    return info


if __name__ == "__main__":
    # Whatever asks it to end, the cluster is cleared away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(main())
