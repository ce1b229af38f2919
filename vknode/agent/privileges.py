"""Which namespaces may have what on which cells: the `privileges` of the configuration. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_

from vknode.agent.admission import Rejection
from vknode.agent.patterns import EVERY, fits_any
from vknode.translate.admission import SYSCTL_FORBIDDEN
from vknode.translate.privileges import NOTHING, Allowed, Closed

NOT_ALLOWED = "PrivilegeNotAllowed"


@dataclass(frozen=True)
class Grant:
    """One entry: what Pods of these namespaces may have on these cells of these pools."""

    namespaces: tuple[str, ...]
    allow: Allowed
    cells: tuple[str, ...] = (EVERY,)
    pools: tuple[str, ...] = (EVERY,)

    def holds(self, namespace: str, pool: str, cell: str) -> bool:
        return (
            fits_any(namespace, self.namespaces)
            and fits_any(pool, self.pools)
            and fits_any(cell, self.cells)
        )


class Privileges:
    """All entries. What several of them allow adds up."""

    def __init__(self, grants: Sequence[Grant] = ()) -> None:
        self._grants = tuple(grants)
        # As many as there are namespaces with Pods, on as many cells.
        self._found = lru_cache(maxsize=10_000)(self._find)

    def allowed(self, namespace: str, pool: str, cell: str) -> Allowed:
        return self._found(namespace, pool, cell)

    def _find(self, namespace: str, pool: str, cell: str) -> Allowed:
        holding = (one.allow for one in self._grants if one.holds(namespace, pool, cell))
        return reduce(or_, holding, NOTHING)


def rejection(found: Sequence[Closed], namespace: str, cell: str) -> Rejection:
    """How a Pod fails that asks for what is closed: with the fields' paths, and the lines of
    configuration that would open them. Kernel parameters alone have a kubelet's reason."""
    text = "; ".join(_told(one, namespace, cell) for one in found)
    only_sysctls = all(one.forbidden for one in found)
    return Rejection(SYSCTL_FORBIDDEN if only_sysctls else NOT_ALLOWED, text)


def _told(one: Closed, namespace: str, cell: str) -> str:
    text = (
        f"{one.path}: is not open to namespace {namespace} on cell {cell}; in the agent's "
        f"configuration privileges[].allow may open it: {{{one.opens}}}"
    )
    return f"{one.forbidden}; {text}" if one.forbidden else text
