"""`vknode demo`: the main job on real parts, with a summary of what was observed."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from vknode.cli.dev_options import FAILED, INTERRUPTED, REFUSED, fail
from vknode.devcluster.cluster import DevCluster, Refused, refuse_without_privileges
from vknode.devcluster.demo import Story
from vknode.devcluster.images import ImagesUnavailable
from vknode.devcluster.kubectl import KubectlFailed
from vknode.devcluster.leftovers import Snapshot, take
from vknode.devcluster.network import NetworkFailed
from vknode.devcluster.ports import PortTaken
from vknode.devcluster.process import ChildFailed
from vknode.devcluster.programs import ProgramsMissing, provide
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE
from vknode.devcluster.state import StateUnusable

EXAMPLE = Path(__file__).resolve().parents[2] / "manifests" / "examples" / "web.yaml"
LEFTOVERS_GONE_WITHIN = 10.0  # seconds; the kernel frees namespaces and cgroups lazily


@click.command(name="demo")
def command() -> None:
    """Start a cluster, run a Deployment on it, kill a zone, and leave nothing behind.

    The last line is JSON. Exit status 0 only if everything was as it should be."""
    if not EXAMPLE.exists():
        raise fail(f"{EXAMPLE} is missing: run the demo from a checkout of vknode", REFUSED)
    folder = Path(tempfile.mkdtemp(prefix="vkn-demo-"))
    try:
        refuse_without_privileges()
        provide(CONTROL_PLANE + CONTAINERD)
        before = take(folder)
        result, problems = asyncio.run(_run(folder / "s"))
        left = _leftovers(folder, before)
        result["leftovers"] = len(left)
        problems += [f"left behind: {one}" for one in left]
    except KeyboardInterrupt:
        raise fail("interrupted; everything started has been ended", INTERRUPTED) from None
    except (Refused, StateUnusable, PortTaken, ProgramsMissing) as problem:
        raise fail(str(problem), REFUSED) from None
    except (ChildFailed, KubectlFailed, NetworkFailed, ImagesUnavailable) as problem:
        raise fail(f"the demo did not get to its end: {problem}", FAILED) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for wrong in problems:
        click.echo(f"PROBLEM: {wrong}", err=True)
    print(json.dumps(result, separators=(",", ":")), flush=True)
    sys.exit(FAILED if problems else 0)


async def _run(state_dir: Path) -> tuple[dict[str, object], list[str]]:
    """Play the story on a cluster of its own; returns what it saw and what was wrong."""
    started = time.monotonic()
    cluster = DevCluster(state_dir, runtime="cri", zones=3, cells_per_zone=2, report=click.echo)
    await cluster.start()
    click.echo(f"ready after {time.monotonic() - started:.1f} s")
    loop = asyncio.get_running_loop()

    def break_zone(zone: str) -> None:
        asyncio.run_coroutine_threadsafe(cluster.kill_zone(zone), loop).result(60)

    def restore_zone(zone: str) -> None:
        asyncio.run_coroutine_threadsafe(cluster.restore_zone(zone), loop).result(60)

    story = Story(cluster.kubectl, EXAMPLE, break_zone, restore_zone)
    try:
        await asyncio.to_thread(story.run)
    finally:
        click.echo("\n# Everything is ended and cleared away")
        await cluster.stop()
    problems = story.problems + [str(crash) for crash in cluster.crashes]
    return {**story.result, "seconds": round(time.monotonic() - started)}, problems


def _leftovers(folder: Path, before: Snapshot) -> list[str]:
    ends = time.monotonic() + LEFTOVERS_GONE_WITHIN
    while True:
        left = take(folder).added_since(before)
        if not left or time.monotonic() > ends:
            return left
        time.sleep(0.2)
