"""Lets the real promtool look at what the agent serves: scrapes become the series of its tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.monitoring.documents import rule_file

#: What Prometheus adds to everything of one target.
TARGET = {"job": "vknode-agent", "instance": "10.0.0.5:9464"}

Labels = tuple[tuple[str, str], ...]


def _labels(served: dict[str, str]) -> Labels:
    """To Prometheus an empty label is none."""
    return tuple(sorted((name, value) for name, value in (served | TARGET).items() if value))


@dataclass
class Recording:
    """Scrapes of one target, a minute apart."""

    scrapes: list[dict[tuple[str, Labels], float]] = field(default_factory=list)

    def scrape(self, text: str) -> None:
        found = {
            (sample.name, _labels(sample.labels)): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        found[("up", tuple(sorted(TARGET.items())))] = 1.0
        self.scrapes.append(found)

    def fail(self) -> None:
        """The target did not answer."""
        self.scrapes.append({("up", tuple(sorted(TARGET.items()))): 0.0})

    def forget(self) -> None:
        """There was no target."""
        self.scrapes.append({})

    def series(self) -> list[dict[str, str]]:
        """As `input_series` of a test."""
        keys = dict.fromkeys(key for scrape in self.scrapes for key in scrape)
        return [
            {
                "series": name + "{" + ", ".join(f'{k}="{v}"' for k, v in labels) + "}",
                "values": " ".join(
                    repr(scrape[name, labels]) if (name, labels) in scrape else "stale"
                    for scrape in self.scrapes
                ),
            }
            for name, labels in keys
        ]


@dataclass
class Promtool:
    program: Path
    folder: Path

    def run(self, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test(self, group: dict[str, Any]) -> None:
        """One group of a test file, with the alert rules. AssertionError with what differs."""
        rules = self.folder / "rules.yaml"
        rules.write_text(yaml.safe_dump(rule_file()))
        tests = self.folder / "tests.yaml"
        document = {
            "rule_files": [str(rules)],
            "evaluation_interval": "1m",
            "fuzzy_compare": True,
            "tests": [{"interval": "1m", **group}],
        }
        tests.write_text(yaml.safe_dump(document, width=10**6))
        done = self.run("test", "rules", str(tests))
        assert done.returncode == 0, done.stdout + done.stderr
