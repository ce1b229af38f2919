"""`docs/security.md` names the test of each threat: those tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(?P<file>[\w/]*?(?:test_\w+\.py)?)::(?P<test>test_\w+)`")


def test_every_threat_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in text.partition("## Threats")[2].splitlines() if line.startswith("| ")]
    rows = rows[1:]  # the head
    assert len(rows) > 20
    for row in rows:
        last = row.rstrip(" |").rpartition("|")[2]
        assert "test_" in last, row
        for found in NAMED.finditer(last):
            file = found["file"] or "test_kubelet_api.py"
            path = ROOT / file if "/" in file else ROOT / "tests" / "security" / file
            assert f"def {found['test']}(" in path.read_text(), found[0]
