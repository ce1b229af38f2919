"""Coverage-guided fuzzing of one target, by atheris (libFuzzer for Python).

    python -m tests.fuzz TARGET [--seconds 60] [--corpus out/fuzz/TARGET] [--seed N --runs N]

Starts from `corpus/TARGET`, keeps what reaches new code in `--corpus` for the next time,
and ends with 0, or with the input that breaks the target: its file, and a traceback.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vknode"]):
    from tests.fuzz.targets import TARGETS

SEEDS = Path(__file__).with_name("corpus")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs (no end)")
    parser.add_argument("--seed", type=int, default=0, help="0 is another each time (0)")
    parser.add_argument("--corpus", type=Path, help="where found inputs are kept (out/fuzz/TARGET)")
    parser.add_argument("--input", type=Path, help="run one input that was found, and end")
    options = parser.parse_args()
    if options.input is not None:
        TARGETS[options.target](options.input.read_bytes())
        return
    corpus = options.corpus or Path("out/fuzz") / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        "-max_len=4096",
        # One input that takes so long, or so much memory, is a defect too.
        "-timeout=10",
        "-rss_limit_mb=1024",
        f"-artifact_prefix={corpus.parent}/{options.target}-",
        str(corpus),
        str(SEEDS / options.target),
    ]
    atheris.Setup(arguments, TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
