"""The simulation's configuration: a wrong file is told with its field and a fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vknode.pool.runtimes.sim.config import (
    SimConfigError,
    load_config,
    parse_config,
    zone_subnet,
)
from vknode.pool.runtimes.sim.durations import parse_duration


def test_a_whole_configuration() -> None:
    config = parse_config(
        {
            "seed": 7,
            "subnet": "10.70.0.0/16",
            "runtime_handlers": ["gvisor"],
            "latency": {"sandbox": {"median": "60ms", "spread": 1.4}},
            "failures": {"container": 0.02},
            "outages": [{"after": "30s", "for": "10s"}],
            "scripts": [
                {"match": {"name": "x-*"}, "behaviour": {"exit-after": "5s", "exit-code": 3}}
            ],
        }
    )
    assert config.latency_of("sandbox").median == 0.06
    assert config.latency_of("stop").median > 0
    assert config.scripts[0].fits("ns", "x-1", "c", "i")
    assert not config.scripts[0].fits("ns", "y-1", "c", "i")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], ["mapping"]),
        ({"sed": 1}, ["'sed'", "seed"]),
        ({"seed": "x"}, ["seed", "whole number"]),
        ({"latency": {"sandbox": {}}}, ["latency.sandbox.median", "50ms"]),
        ({"latency": {"sandbox": {"median": "fast"}}}, ["latency.sandbox.median", "250ms"]),
        ({"latency": {"sandbox": {"median": "1s", "spread": 0.5}}}, ["latency.sandbox.spread"]),
        ({"failures": {"container": 2}}, ["failures.container", "probability"]),
        ({"outages": [{"after": "1s"}]}, ["outages[0].for"]),
        ({"scripts": [{"behaviour": {"exit-cod": 1}}]}, ["scripts[0].behaviour.exit-cod"]),
        ({"scripts": [{"behaviour": {"exit-code": 999}}]}, ["exit-code", "255"]),
        ({"scripts": [{"match": {"pod": "x"}}]}, ["scripts[0].match", "'pod'"]),
        ({"subnet": "10.0.0.0/30"}, ["subnet", "/28"]),
        ({"subnet": "hello"}, ["subnet"]),
    ],
)
def test_a_wrong_configuration_names_the_field(raw: Any, words: list[str]) -> None:
    with pytest.raises(SimConfigError) as caught:
        parse_config(raw)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sim.yaml"
    with pytest.raises(SimConfigError, match=r"sim\.yaml: cannot be read"):
        load_config(path)
    path.write_text("a: [")
    with pytest.raises(SimConfigError, match=r"sim\.yaml: is not YAML"):
        load_config(path)
    path.write_text("seed: x")
    with pytest.raises(SimConfigError, match=r"sim\.yaml: seed"):
        load_config(path)


def test_zones_have_different_subnets() -> None:
    zones = ["az1", "az2", "az3", "eu-west-1a", "eu-west-1b", "eu-west-1c"]
    assert len({zone_subnet(zone) for zone in zones}) == len(zones)


def test_durations() -> None:
    assert [parse_duration(text) for text in ("250ms", "5s", "1m30s", "2h", "0.5")] == [
        0.25,
        5,
        90,
        7200,
        0.5,
    ]
    for text in ("", "5 s", "s", "-1s", "1d"):
        with pytest.raises(ValueError, match="250ms"):
            parse_duration(text)
