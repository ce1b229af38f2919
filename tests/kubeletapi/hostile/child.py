"""A server in a process of its own, so that its memory is its own too.

    python -m tests.kubeletapi.hostile.child FOLDER

Prints its port, and then answers each line of its input with a JSON object: its resident memory
(`rss`, bytes), what it has given of what never ends (`given`, bytes by who), and how many streams
run. Ends with its input, having let go of everything.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from tests.kubeletapi.hostile.world import serving


def main() -> None:
    with serving(Path(sys.argv[1])) as world:
        print(world.port, flush=True)
        for _ in sys.stdin:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(
                json.dumps(
                    {
                        "rss": pages * resource.getpagesize(),
                        "given": dict(world.backend.given),
                        "streams": world.api.running_streams,
                    }
                ),
                flush=True,
            )
        world.require_health()


if __name__ == "__main__":
    main()
