"""What do exec, logs and port-forward cost through vknode?

    python -m bench.streams [--rounds 40] [--sessions 500] [--followers 1000] [--log-mib 1024]

One zone on one real containerd with a real control plane, twice: an API server that passes
WebSockets on to nodes, and one that speaks SPDY/3.1 to them, as all did before 1.36. Then the
same with the real kubelet in place of vknode (`--no-kubelet` leaves that out). Logs do not
differ between the API servers and are measured once for each node. The last line is JSON:

    exec_ms            one /bin/true: CRI's own Exec, the pool's, the agent's kubelet API
                       directly (WebSocket), and through the API server each way; `connection`
                       is no exec: a new TLS connection to the agent and its /healthz
    exec_added_ms_p50  the agent's part: its kubelet API's median less the pool's. The client's
                       connection is in it; `exec_added_connected_ms_p50` is without it
    logs_ratio         a whole log against a stub that sends a file, both behind the API server
    sessions_at_once   exec sessions that were open together and answered (the worse way)
    followers          `logs -f` at once that got every byte
    forward            MiB/s through kubectl port-forward and straight to the Pod, both ways
    truncations        streams that lost a byte, of all of the above
    agent_mib          the agent's memory (PSS) idle, and with all sessions or followers open
    beside_kubelet     the same figures over the kubelet's own, of this run: exec times (below
                       1 is faster), rates of logs and port-forward (above 1 is faster)

Figures of the kubelet's begin with `kubelet_`; what it cut short is `kubelet_truncations`.

containerd's shim before 1.6.22 may start one exec a second where hundreds come to one
container at once (containerd issue 8557): `sessions.*.seconds` then differs by minutes from
run to run, for the kubelet as for us.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from bench.streams import clusters, parts
from bench.streams.clients import connect
from bench.streams.site import Site

LEGS = ("websocket", "spdy")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"exec_ms": {}, "sessions": {}, "forward": {}, "logs": {}}
    figures |= {"followed": {}, "agent_mib": {}}
    ours, theirs = parts.Tally(), parts.Tally()
    _legs(clusters.vknode, options, figures, ours)
    if options.kubelet:
        _legs(clusters.kubelet, options, figures, theirs)
        figures["kubelet_truncations"] = theirs.truncations
        figures["beside_kubelet"] = _beside(figures)
    exec_ms = figures["exec_ms"]
    added = exec_ms["agent"]["p50"] - exec_ms["pool"]["p50"]
    return {
        "exec_added_ms_p50": round(added, 1),
        "exec_added_connected_ms_p50": round(added - exec_ms["connection"]["p50"], 1),
        "logs_ratio": figures["logs"]["whole"]["ratio"],
        "sessions_at_once": min(figures["sessions"][leg]["open"] for leg in LEGS),
        "followers": figures["followed"]["agent"]["whole"],
        "truncations": ours.truncations,
        **figures,
        "cut": ours.reasons + theirs.reasons,
    }


def _legs(
    cluster: Callable[..., AbstractContextManager[Site]],
    options: argparse.Namespace,
    figures: dict[str, Any],
    tally: parts.Tally,
) -> None:
    for leg in LEGS:
        say(f"{cluster.__name__}, {leg}: starting a cluster of one zone")
        with cluster(websockets=leg == "websocket") as site:
            asyncio.run(_one_leg(leg, site, options, figures, tally))


def _beside(figures: dict[str, Any]) -> dict[str, float]:
    """Ours over the kubelet's, by what is compared."""
    exec_ms, forward, logs = figures["exec_ms"], figures["forward"], figures["logs"]
    found = {
        f"exec_{way}": exec_ms[way]["p50"] / exec_ms[f"kubelet_{way}"]["p50"]
        for way in ("agent", "connection", *LEGS)
    }
    for leg in LEGS:
        for way in ("down", "up"):
            found[f"forward_{leg}_{way}"] = forward[leg][way] / forward[f"kubelet_{leg}"][way]
    found["logs"] = logs["whole"]["mib_per_s"] / logs["kubelet_whole"]["mib_per_s"]
    return {name: round(value, 3) for name, value in found.items()}


async def _one_leg(
    leg: str,
    site: Site,
    options: argparse.Namespace,
    figures: dict[str, Any],
    tally: parts.Tally,
) -> None:
    first = leg == LEGS[0]
    mine = site.prefix
    memory = figures["agent_mib"]
    async with site:
        door = await site.pod("plain", "sleep 3600")
        say(f"{leg}: exec of {parts.TRUE}, {options.rounds} times each way")
        ways = {f"{mine}{leg}": partial(parts.exec_true, door)}
        if first:
            agent = await site.kubelet_door(door)
            ways[f"{mine}agent"] = partial(parts.exec_true, agent)
            ways[f"{mine}connection"] = partial(connect, agent)
            if not mine:
                ways["pool"] = partial(site.pool_exec, door.pod)
            ways[f"{mine}cri"] = partial(site.cri_exec, door.pod)
        figures["exec_ms"] |= await parts.alternate(ways, options.rounds)
        memory[f"{mine}{leg}_idle"] = site.agent_mib()
        say(f"{leg}: {options.sessions} exec sessions at once")
        found = await parts.sessions_at_once(door, options.sessions, tally, site.agent_mib)
        memory[f"{mine}{leg}_sessions"] = found.pop("mib")
        figures["sessions"][f"{mine}{leg}"] = found
        say(f"{leg}: port-forward of {options.forward_mib} MiB each way")
        size = options.forward_mib << 20
        figures["forward"] |= await site.forward(leg, size, options.forward_rounds)
        if first:
            await _logs(site, options, figures, tally)


async def _logs(
    site: Site, options: argparse.Namespace, figures: dict[str, Any], tally: parts.Tally
) -> None:
    say(f"{options.followers} followers of {options.follow_kib} KiB")
    text = parts.Text(options.follow_kib << 10)
    chatter = await site.pod("chatter", text.script("exit 0"))
    found = await parts.follow(
        chatter, options.followers, text, lambda: parts.go(chatter), tally, site.agent_mib
    )
    figures["agent_mib"][f"{site.prefix}followers"] = found.pop("mib")
    figures["followed"][f"{site.prefix}agent"] = found
    say(f"a log of {options.log_mib} MiB")
    figures["logs"] |= await site.logs(options.log_mib << 20, options.log_rounds, tally)


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
    parser.add_argument("--no-kubelet", dest="kubelet", action="store_false", help="ours alone")
    options = parser.parse_args()
    if min(options.rounds, options.log_rounds, options.forward_rounds) < 2:
        parser.error("rounds take at least 2: a spread needs two values")
    print(json.dumps(measure(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
