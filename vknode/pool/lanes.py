"""Through which gate each action of a machine goes to the runtime.

| gate   | holds                                    | width                 |
|--------|------------------------------------------|-----------------------|
| start  | new sandboxes and container starts       | runtime.best_width    |
| pull   | image pulls                              | the same              |
| look   | quick looks for an image                 | four times            |
| end    | stop and removal of sandboxes, old ones  | half of it            |

What a start may have to wait for others for (`Runtime.prepare`) comes before its gate.
Container stops, hooks, probes and resizes pass no gate: they mostly wait for a grace or
for what they call, and must not wait for one another. The runtime bounds how many probes
begin at once.
"""

from __future__ import annotations

from typing import Any

from vknode.pool.engine import steps
from vknode.pool.gate import NEW_SANDBOX, START_CONTAINER, Gate
from vknode.pool.v1 import spec_pb2


class Lanes:
    """The gates of one pool."""

    def __init__(self, width: int) -> None:
        """`width` is how many sandboxes the runtime starts at once with the best result."""
        self.start = Gate(width)
        self.pull = Gate(width)
        self.look = Gate(4 * width)
        self.end = Gate(max(1, width // 2))

    def of(self, action: Any) -> tuple[Gate | None, int]:
        """The gate and the priority in it; no gate: at once."""
        match action:
            case steps.StartContainer():
                return self.start, START_CONTAINER
            case steps.RunSandbox():
                return self.start, NEW_SANDBOX
            case steps.EnsureImage():
                quick = action.policy == spec_pb2.IMAGE_PULL_POLICY_NEVER
                return (self.look if quick else self.pull), 0
            case steps.RemoveSandbox() | steps.StopSandbox():
                return self.end, 0
            case steps.RemoveContainer():
                return self.end, 1
        return None, 0
