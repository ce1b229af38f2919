"""`vknode dev status`: what runs in a development cluster."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from vknode.cli.dev_options import FAILED, fail, state_dir_option
from vknode.devcluster.control import ask
from vknode.devcluster.state import StateDir


@click.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_dir_option
def command(state_dir: Path, as_json: bool) -> None:
    """Show what runs."""
    state = StateDir(state_dir)
    try:
        answers = asyncio.run(_ask(state))
    except (ConnectionError, FileNotFoundError):
        hint = ""
        if state.load() is not None:
            hint = "; a killed run left things behind: `vknode dev stop` clears them"
        raise fail(f"no development cluster runs in {state.path}{hint}", FAILED) from None
    if as_json:
        click.echo(json.dumps(answers))
        return
    click.echo(f"{answers['server']}, runtime {answers['runtime']}")
    click.echo(f"export KUBECONFIG={answers['kubeconfig']}")
    for name, zone in answers["zones"].items():
        subnet = f", Pods in {zone['subnet']}" if zone["subnet"] else ""
        dark = " (dark)" if zone["dark"] else ""
        click.echo(f"zone {name}{dark}: {', '.join(zone['cells'])}{subnet}")
    for name, child in answers["children"].items():
        click.echo(f"  {name}: {child}")
    for part in answers["faults"]:
        click.echo(f"fault: {part}")
    for crash in answers["crashes"]:
        click.echo(f"crashed: {crash}")


async def _ask(state: StateDir) -> dict[str, Any]:
    async for answer in ask(state.control_socket, {"op": "status"}):
        if "done" in answer:
            result: dict[str, Any] = answer["done"]
            return result
    raise ConnectionError("no answer")
