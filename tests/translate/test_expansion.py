"""$(VAR) references, against the table of Kubernetes' own tests and a port of its algorithm."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.translate.expansion import expand

_VARS = {"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)-$(VAR_B)$(VAR_C)", "A-BC"),
        ("$(VAR_REF)", "$(VAR_A)"),
        ("foo$(VAR_EMPTY)bar", "foobar"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("$$$$$(VAR_A)", "$$A"),
        ("$VAR_A", "$VAR_A"),
        ("$(VAR_A", "$(VAR_A"),
        ("$", "$"),
        ("cost: 5$", "cost: 5$"),
        ("$()", "$()"),
        ("$(VAR$(VAR_A)", "$(VAR$(VAR_A)"),
        ("$ $(VAR_A)", "$ A"),
        ("line\n$(VAR_A)$\n", "line\nA$\n"),
        ("$ä$(VAR_A)", "$äA"),
    ],
)
def test_known_cases(text: str, result: str) -> None:
    assert expand(text, _VARS) == result


def test_the_first_context_wins() -> None:
    assert expand("$(X)$(Y)", {"X": "1"}, {"X": "2", "Y": "3"}) == "13"


def _reference(text: str, variables: Mapping[str, str]) -> str:
    """expand.go, loop for loop."""
    out, checkpoint, cursor = "", 0, 0
    while cursor < len(text):
        if text[cursor] == "$" and cursor + 1 < len(text):
            out += text[checkpoint:cursor]
            rest = text[cursor + 1 :]
            if rest[0] == "$":
                out, advance = out + "$", 1
            elif rest[0] == "(":
                end = rest.find(")", 1)
                if end < 0:
                    out, advance = out + "$(", 1
                else:
                    name = rest[1:end]
                    out, advance = out + variables.get(name, f"$({name})"), end + 1
            else:
                out, advance = out + "$" + rest[0], 1
            cursor += advance
            checkpoint = cursor + 1
        cursor += 1
    return out + text[checkpoint:]


@given(
    st.text(alphabet="$()AB \n€", max_size=30), st.dictionaries(st.sampled_from("AB"), st.text())
)
def test_agrees_with_the_original_algorithm(text: str, variables: dict[str, str]) -> None:
    assert expand(text, variables) == _reference(text, variables)
