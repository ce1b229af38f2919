"""$(VAR) references, as in Kubernetes' third_party/forked/golang/expansion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# After "$": another "$" (an escape), a closed reference, or any one character, which
# passes through together with the "$".
_REFERENCE = re.compile(r"\$(?:(\$)|\(([^)]*)\)|.)", re.DOTALL)


def expand(text: str, *contexts: Mapping[str, str]) -> str:
    """`text` with references replaced; the first context that has the name wins.

    "$$" becomes "$"; an unknown reference and any other use of "$" stay as they are.
    """
    if "$" not in text:
        return text

    def lookup(name: str) -> str:
        for context in contexts:
            if name in context:
                return context[name]
        return f"$({name})"

    return expand_with(text, lookup)


def expand_with(text: str, lookup: Callable[[str], str]) -> str:
    """The same with any source of values."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is not None:
            return "$"
        if match[2] is not None:
            return lookup(match[2])
        return match[0]

    return _REFERENCE.sub(replace, text)
