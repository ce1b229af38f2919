"""What do exec, logs and port-forward cost through vknode?

    python -m bench.streams [--rounds 40] [--sessions 500] [--followers 1000] [--log-mib 1024]

One zone on one real containerd with a real control plane, twice: an API server that passes
WebSockets on to nodes, and one that speaks SPDY/3.1 to them, as all did before 1.36. Logs
do not differ between the two and are measured once. The last line is JSON:

    exec_ms            one /bin/true: CRI's own Exec, the pool's, the agent's kubelet API
                       directly (WebSocket), and through the API server each way
    exec_added_ms_p50  the agent's part: its kubelet API's median less the pool's
    logs_ratio         a whole log against a stub that sends a file, both behind the API server
    sessions_at_once   exec sessions that were open together and answered (the worse way)
    followers          `logs -f` at once that got every byte
    forward            MiB/s through kubectl port-forward and straight to the Pod, both ways
    truncations        streams that lost a byte, of all of the above
    agent_mib          the agent's memory (PSS) idle, and with all sessions or followers open
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.streams import parts
from bench.streams.site import Site

LEGS = ("websocket", "spdy")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    tally = parts.Tally()
    figures: dict[str, Any] = {"exec_ms": {}, "sessions": {}, "forward": {}}
    memory: dict[str, float] = {}
    for leg in LEGS:
        with tempfile.TemporaryDirectory(prefix="vkn-bench-") as folder:
            site = Site(Path(folder) / "s", websockets=leg == "websocket")
            say(f"{leg}: starting a cluster of one zone")
            async with site:
                await _one_leg(leg, site, options, figures, memory, tally)
    exec_ms = figures["exec_ms"]
    return {
        "exec_added_ms_p50": round(exec_ms["agent"]["p50"] - exec_ms["pool"]["p50"], 1),
        "logs_ratio": figures["logs"]["kubernetes"]["ratio"],
        "sessions_at_once": min(leg["open"] for leg in figures["sessions"].values()),
        "followers": figures["followed"]["whole"],
        "truncations": tally.truncations,
        **figures,
        "agent_mib": memory,
        "cut": tally.reasons,
    }


async def _one_leg(
    leg: str,
    site: Site,
    options: argparse.Namespace,
    figures: dict[str, Any],
    memory: dict[str, float],
    tally: parts.Tally,
) -> None:
    door = await site.pod("plain", "sleep 3600")
    say(f"{leg}: exec of {parts.TRUE}, {options.rounds} times each way")
    ways = {leg: lambda: parts.exec_true(door)}
    if leg == "websocket":
        agent = await site.kubelet_door(door)
        ways |= {
            "agent": lambda: parts.exec_true(agent),
            "pool": lambda: site.pool_exec(door.pod),
            "cri": lambda: site.cri_exec(door.pod),
        }
    figures["exec_ms"] |= await parts.alternate(ways, options.rounds)
    memory[f"{leg}_idle"] = site.agent_mib()
    say(f"{leg}: {options.sessions} exec sessions at once")
    found = await parts.sessions_at_once(door, options.sessions, tally, site.agent_mib)
    memory[f"{leg}_sessions"] = found.pop("mib")
    figures["sessions"][leg] = found
    say(f"{leg}: port-forward of {options.forward_mib} MiB each way")
    figures["forward"] |= await site.forward(leg, options.forward_mib << 20, options.forward_rounds)
    if leg == "websocket":
        say(f"{options.followers} followers of {options.follow_kib} KiB")
        text = parts.Text(options.follow_kib << 10)
        chatter = await site.pod("chatter", text.script("exit 0"))
        figures["followed"] = await parts.follow(
            chatter, options.followers, text, lambda: parts.go(chatter), tally, site.agent_mib
        )
        memory["followers"] = figures["followed"].pop("mib")
        say(f"a log of {options.log_mib} MiB")
        figures["logs"] = await site.logs(options.log_mib << 20, options.log_rounds, tally)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default, text in (
        ("rounds", 40, "runs of /bin/true each way"),
        ("sessions", 500, "exec sessions at once"),
        ("followers", 1000, "log followers at once"),
        ("follow-kib", 256, "what each follower gets"),
        ("log-mib", 1024, "size of the whole log"),
        ("log-rounds", 3, "times that it is read, each way"),
        ("forward-mib", 256, "bytes of one port-forward"),
        ("forward-rounds", 3, "port-forwards each way"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    options = parser.parse_args()
    if min(options.rounds, options.log_rounds, options.forward_rounds) < 2:
        parser.error("rounds take at least 2: a spread needs two values")
    print(json.dumps(asyncio.run(measure(options))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
