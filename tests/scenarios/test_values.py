"""What holds and what does not, and what a difference is told as."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.values import problems, text_problems


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        ("Running", "Running", "Pending"),
        (3, 3, 4),
        (True, True, 1),
        (1, 1, True),
        ("any", "x", ""),
        ("any", 0, None),
        ("none", None, "x"),
        ("none", "", 0),
        ("~^back-off \\d+s", "back-off 10s more", "no back-off 10s"),
        ("~x", "axb", None),
        ("!~x", "ab", "axb"),
        ("at least 2", 2, 1),
        ("at most 2", 2, 3),
        ("at least 2", 7, "7"),
        ({"a": 1}, {"a": 1, "b": 2}, {"b": 2}),
        ({"a": {"b": "any"}}, {"a": {"b": "x"}}, {"a": None}),
        ([{"ip": "any"}], [{"ip": "10.0.0.1"}], [{"ip": "10.0.0.1"}, {"ip": "::1"}]),
        ({"a": "none"}, {}, {"a": "x"}),
    ],
)
def test_a_value_holds_or_its_difference_is_told(wanted: Any, good: Any, bad: Any) -> None:
    assert not list(problems(wanted, good, "it"))
    assert list(problems(wanted, bad, "it"))


def test_a_difference_names_its_place() -> None:
    seen = {"containers": {"main": {"restartCount": 0}}}
    wanted = {"containers": {"main": {"restartCount": "at least 1"}}}
    assert list(problems(wanted, seen)) == [
        "containers.main.restartCount: wanted 'at least 1', is 0"
    ]


def test_of_a_text_all_must_hold() -> None:
    assert not list(text_problems(["~^one$", "!~three"], "one\ntwo\n", "logs"))
    assert list(text_problems(["~^one$", "!~two"], "one\ntwo\n", "logs")) == [
        "logs: wanted '!~two', is 'one\\ntwo\\n'"
    ]
    assert not list(text_problems("one\ntwo", "one\ntwo\n", "logs"))
    assert not list(text_problems("none", "\n", "logs"))
