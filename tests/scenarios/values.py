"""Whether a value is what a scenario wants. Pure.

| wanted           | holds for                                            |
|------------------|------------------------------------------------------|
| `any`            | whatever is there and not empty                      |
| `none`           | what is not there, or empty                          |
| `~PATTERN`       | text in which the regular expression is found        |
| `!~PATTERN`      | text in which it is not found                        |
| `at least N`     | numbers; also `at most N`                            |
| a mapping        | mappings that have at least these keys, each holding |
| a list           | lists of the same length, each element holding       |
| something else   | exactly that                                         |

For text (logs, output of commands) a list means that each of its elements must hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NUMBER = re.compile(r"at (least|most) (\d+)")


def problems(wanted: Any, seen: Any, where: str = "") -> Iterator[str]:
    """What differs, one line a difference; none if `seen` is what is wanted."""
    if isinstance(wanted, Mapping):
        if not isinstance(seen, Mapping):
            yield f"{where}: wanted {shown(wanted)}, is {shown(seen)}"
            return
        for key, value in wanted.items():
            yield from problems(value, seen.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(wanted, list):
        if not isinstance(seen, list) or len(wanted) != len(seen):
            yield f"{where}: wanted {shown(wanted)}, is {shown(seen)}"
            return
        for index, value in enumerate(wanted):
            yield from problems(value, seen[index], f"{where}[{index}]")
    elif not holds(wanted, seen):
        yield f"{where}: wanted {shown(wanted)}, is {shown(seen)}"


def text_problems(wanted: Any, seen: str, where: str) -> Iterator[str]:
    """What differs in a text; line ends at its end do not count."""
    for one in wanted if isinstance(wanted, list) else [wanted]:
        wish = one.rstrip("\n") if isinstance(one, str) else str(one)
        if not holds(wish, seen.rstrip("\n")) and not (wish == "none" and not seen.strip()):
            yield f"{where}: wanted {shown(one)}, is {shown(seen)}"


def holds(wanted: Any, seen: Any) -> bool:
    """Whether a single value is what is wanted."""
    if wanted == "any":
        return seen not in (None, "", [], {})
    if wanted == "none":
        return seen in (None, "", [], {})
    if isinstance(wanted, str):
        if wanted.startswith("~"):
            return isinstance(seen, str) and bool(re.search(wanted[1:], seen, re.M | re.S))
        if wanted.startswith("!~"):
            return isinstance(seen, str) and not re.search(wanted[2:], seen, re.M | re.S)
        if number := _NUMBER.fullmatch(wanted):
            if not isinstance(seen, int):
                return False
            bound = int(number[2])
            return seen >= bound if number[1] == "least" else seen <= bound
    return bool(wanted == seen and isinstance(wanted, bool) == isinstance(seen, bool))


def check_wish(wanted: Any) -> None:
    """Raises ValueError for a pattern that is none."""
    if isinstance(wanted, Mapping):
        for value in wanted.values():
            check_wish(value)
    elif isinstance(wanted, list):
        for value in wanted:
            check_wish(value)
    elif isinstance(wanted, str) and wanted.startswith(("~", "!~")):
        pattern = wanted.partition("~")[2]
        try:
            re.compile(pattern)
        except re.error as problem:
            raise ValueError(f"{pattern!r} is no regular expression: {problem}") from None


def shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
