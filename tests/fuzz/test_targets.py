"""Parsers of others' bytes keep their promises for what a fuzzer finds in a few seconds.

`make fuzz` goes on for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

SECONDS = 8


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nothing_that_a_fuzzer_finds_breaks_it(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", target),
            *("--seconds", str(SECONDS), "--corpus", str(tmp_path / "corpus")),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # It ran: libFuzzer's last line of statistics.
    assert "Done " in done.stderr, done.stderr[-4000:]
