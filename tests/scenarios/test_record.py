"""Scenarios are right because the real kubelet passes them, as they are now."""

from __future__ import annotations

from tests.scenarios import record
from tests.scenarios.format import load


def test_every_scenario_passed_on_the_real_kubelet_as_it_is_now() -> None:
    gaps = list(record.gaps(load(), record.read()))
    assert not gaps, (
        "\n".join(gaps) + "\nrun: python -m tests.scenarios --target kubelet -k 'NAME|NAME'"
    )


def test_there_are_a_hundred_scenarios_and_each_has_a_title_of_its_own() -> None:
    scenarios = load()
    assert len(scenarios) >= 100
    titles = [one.title for one in scenarios]
    assert sorted(titles) == sorted(set(titles))
