"""Parsers of others' bytes keep their promises for what a fuzzer finds in a few seconds.

Always the same inputs, so that a run fails for what has changed and not by luck; `make fuzz` has
others each time, and goes on for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

RUNS = 200_000
#: Of a slow one.
FEWER = {"configuration": 10_000}
#: On a machine so busy that these do not suffice, it gets less far.
SECONDS = 60


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nothing_that_a_fuzzer_finds_breaks_it(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", target),
            *("--runs", str(FEWER.get(target, RUNS)), "--seconds", str(SECONDS)),
            *("--seed", "1", "--corpus", str(tmp_path / "corpus")),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        # What a set goes through first decides what is new, and so what is tried next.
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # It ran: libFuzzer's last line of statistics.
    assert "Done " in done.stderr, done.stderr[-4000:]
