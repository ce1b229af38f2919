"""How long does a Pod take from create to Running, beside the runtime's own calls?

    python -m bench.coldstart [--rounds 5] [--serial 10] [--out out]

One zone on one real containerd with a real control plane. In every round the raw
CRI calls (the floor, `raw_cri.py`) and Pods through Kubernetes and vknode take
turns, serially and in bursts, so that a machine that gets slower meets both. The
ratios are of medians over the rounds. What a start consists of comes from the
agent's own timing of each Pod. The last line is JSON; plots go to `--out`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp

from bench.figures import BURSTS, PHASES, RAW_CALLS, RAW_WIDTHS, Figures
from bench.plot import plot
from bench.quiet import quiet
from bench.raw_cri import RawCri
from bench.watcher import Sight, Watcher
from vknode.devcluster.cluster import DevCluster
from vknode.devcluster.ports import pick_port
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def fetch_timings(url: str, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The agent's own timing of these starts, by Pod name. The watcher may see a Pod
    Running before the agent has the answer to its write: that moment is waited for.
    Raises TimeoutError after 5 s."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(5):
        while True:
            async with session.get(url) as response:
                response.raise_for_status()
                found = {entry["name"]: entry for entry in await response.json()}
            if all(found.get(name, {}).get("status_written") for name in names):
                return found
            await asyncio.sleep(0.05)


async def measure(rounds: int, serial: int) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="vkn-bench-") as folder:
        metrics = f"127.0.0.1:{pick_port()}"
        cluster = DevCluster(
            Path(folder) / "s",
            runtime="cri",
            zones=1,
            cells_per_zone=1,
            agent_config={"metrics": {"listen": metrics}},
        )
        say("starting a cluster of one zone")
        await cluster.start()
        try:
            connection = await connect(cluster.kubeconfig)
            raw = RawCri(
                str(cluster.zones["az1"].places.socket),
                "docker.io/library/busybox:1.36",
                Path(folder) / "raw",
            )
            try:
                async with Watcher(KubeClient(connection)) as watcher:
                    for number in range(rounds + 1):
                        # The first round warms everything and is not counted.
                        kept = figures if number else Figures()
                        await one_round(
                            f"http://{metrics}", kept, raw, watcher, number, rounds, serial
                        )
            finally:
                await raw.close()
                await connection.close()
        finally:
            await cluster.stop()
    return figures


async def one_round(
    agent: str,
    figures: Figures,
    raw: RawCri,
    watcher: Watcher,
    number: int,
    rounds: int,
    serial: int,
) -> None:
    say(f"round {number} of {rounds}" + ("" if number else " (warming, not counted)"))
    gc.collect()
    starts: dict[str, Sight] = {}
    for i in range(serial):
        calls = await raw.start_one()
        figures.raw_serial.append(1000 * sum(calls))
        for name, seconds in zip(RAW_CALLS, calls, strict=True):
            figures.raw_calls[name].append(1000 * seconds)
        name = f"serial-{number}-{i}"
        starts[name] = await watcher.start(name)
    figures.serial += [1000 * s.seconds for s in starts.values()]
    timings = await fetch_timings(agent + "/debug/timings", starts)
    for name, sight in starts.items():
        for phase, at in phases_of(timings[name], sight).items():
            figures.phases[phase].append(at)
    await raw.clear()
    await watcher.clear()
    await raw.until_empty()
    await quiet()
    for size in BURSTS:
        rate, times = await watcher.burst([f"burst-{number}-{size}-{i}" for i in range(size)])
        figures.bursts[size].append(rate)
        figures.burst_times[size] += [1000 * t for t in times]
        await watcher.clear()
        await raw.until_empty()
        await quiet()
    for width in RAW_WIDTHS:
        figures.raw_bursts[width].append(await raw.burst(max(BURSTS), width))
        await raw.clear()
        await quiet()
    say(
        f"  serial {statistics.median(figures.serial[-serial:]):.0f} ms, raw "
        f"{statistics.median(figures.raw_serial[-serial:]):.0f} ms; burst of {max(BURSTS)} "
        f"{figures.bursts[max(BURSTS)][-1]:.1f}/s, raw "
        f"{max(v[-1] for v in figures.raw_bursts.values()):.1f}/s"
    )


def phases_of(timing: dict[str, Any], sight: Sight) -> dict[str, float]:
    """When each step was done, in ms after the create was sent: `bound` and `running_seen`
    as the watcher saw them, the rest as the agent and the pool timed it."""
    at = {"bound": sight.bound, "running_seen": sight.running}
    at |= {phase: timing[phase] for phase in PHASES if phase not in at}
    return {phase: (at[phase] - sight.created) / 1e6 for phase in PHASES}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--serial", type=int, default=10, help="serial starts a round (default 10)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the plot")
    options = parser.parse_args()
    if options.rounds < 2 or options.serial < 2:
        parser.error("--rounds and --serial take at least 2: a spread needs two values")
    figures = asyncio.run(measure(options.rounds, options.serial))
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "coldstart.png"
    plot(figures, picture)
    say(f"plot: {picture}")
    print(json.dumps(figures.summary(options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
