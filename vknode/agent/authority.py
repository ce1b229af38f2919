"""For which sandboxes and cells a pool may speak. Pure.

Theory of operation. A pool is trusted with the sandboxes it was given, and with nothing of
another pool's: one that is taken over, or mistaken, harms its own cells only.

- A Pod is given to the pool and the cell that its Node stands for. Of its UID nobody else says
  anything that is believed, nor that pool in another cell's name.
- A Node belongs to the pool that announced its cell. While that pool is configured no other one
  takes the Node over: not while it cannot be reached, and not while it leaves the cell out,
  until the Node is deleted for that (`node_plan.py`).
- `pools[].cells` in the configuration says which cells a pool may announce at all. Without it the
  first pool that announces a cell has it.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Given(NamedTuple):
    """Where a Pod belongs: the pool's name, and its cell."""

    pool: str
    cell: str


class Wrong(enum.Enum):
    """What is wrong with a claim; the label of a metric."""

    # Of a UID that another pool was given.
    OTHER_POOL = "other_pool"
    # Of a UID that it was given, in another cell.
    OTHER_CELL = "other_cell"
    # Of a UID that it was not asked about.
    OTHER_SANDBOX = "other_sandbox"
    # Of a cell that it does not announce.
    FOREIGN_CELL = "foreign_cell"
    # It announces a cell that is another pool's, or that it may not have.
    CELL_TAKEN = "cell_taken"


def judge(pool: str, cell: str, given: Given) -> Wrong | None:
    """A pool speaks of a sandbox in a cell; the Pod of its UID is `given`. None: believed."""
    if pool != given.pool:
        return Wrong.OTHER_POOL
    return Wrong.OTHER_CELL if cell != given.cell else None


def judge_answer(asked: str, uid: str, pool: str, cell: str, given: Given) -> Wrong | None:
    """The same of an answer to a request about the sandbox `asked`."""
    return Wrong.OTHER_SANDBOX if uid != asked else judge(pool, cell, given)
