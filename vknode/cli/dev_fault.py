"""`vknode dev fault`: breaks a part of the running cluster for a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from vknode.cli.dev_options import FAILED, INTERRUPTED, Duration, fail, state_dir_option
from vknode.devcluster.control import ask
from vknode.devcluster.state import StateDir

for_option = click.option(
    "--for", "seconds", type=Duration(), default=60.0, show_default="60s", help="How long."
)


@click.group(name="fault")
def command() -> None:
    """Break a part of the running cluster for a time, and watch it heal.

    The part comes back after --for, also if this command is stopped before."""


@command.command()
@click.argument("zone")
@for_option
@state_dir_option
def zone(zone: str, seconds: float, state_dir: Path) -> None:
    """Cut a zone's power: containerd, pool and containers end at once."""
    _fault(state_dir, {"what": "zone", "zone": zone, "seconds": seconds})


@command.command()
@click.argument("zone")
@for_option
@state_dir_option
def pool(zone: str, seconds: float, state_dir: Path) -> None:
    """Kill a zone's pool; its containers run on."""
    _fault(state_dir, {"what": "pool", "zone": zone, "seconds": seconds})


@command.command()
@for_option
@state_dir_option
def agent(seconds: float, state_dir: Path) -> None:
    """Kill the agent; everything it has started runs on."""
    _fault(state_dir, {"what": "agent", "seconds": seconds})


@command.command()
@click.option(
    "--how",
    type=click.Choice(["hang", "kill"]),
    default="hang",
    show_default=True,
    help="hang: it answers nothing. kill: connections are refused.",
)
@for_option
@state_dir_option
def apiserver(seconds: float, state_dir: Path, how: str) -> None:
    """Stop the API server."""
    _fault(state_dir, {"what": "apiserver", "seconds": seconds, "how": how})


def _fault(state_dir: Path, request: dict[str, Any]) -> None:
    state = StateDir(state_dir)
    try:
        problem = asyncio.run(_follow(state, {"op": "fault", **request}))
    except (ConnectionError, FileNotFoundError):
        raise fail(f"no development cluster runs in {state.path}", FAILED) from None
    except KeyboardInterrupt:
        raise fail("no longer watching; the part comes back all the same", INTERRUPTED) from None
    if problem is not None:
        raise fail(problem, FAILED)


async def _follow(state: StateDir, request: dict[str, Any]) -> str | None:
    async for answer in ask(state.control_socket, request):
        if "say" in answer:
            click.echo(answer["say"])
        elif "error" in answer:
            return str(answer["error"])
        else:
            return None
    return "the cluster ended"
