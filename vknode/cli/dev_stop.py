"""`vknode dev stop`: ends a running cluster, or clears what a killed one left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from vknode.cli.dev_options import FAILED, fail, state_dir_option
from vknode.devcluster.programs.provide import locate
from vknode.devcluster.state import StateDir
from vknode.devcluster.sweep import sweep

#: Seconds that a running `vknode dev` gets to end.
PATIENCE = 60.0


@click.command(name="stop")
@state_dir_option
def command(state_dir: Path) -> None:
    """End a running cluster, or clear what a killed one left."""
    state = StateDir(state_dir)
    if not state.path.is_dir():
        click.echo(f"nothing runs: there is no {state.path}")
        return
    if state.held():
        _end(state)
    state.acquire()
    try:
        record = state.load()
        if record is None:
            click.echo("nothing is left")
            return
        left = sweep(record, locate(("ip", "iptables")).found)
        # With something left, the record must stay, so that one can try again.
        left = left or state.clear()
    finally:
        state.release()
    if left:
        raise fail("could not remove: " + "; ".join(left), FAILED)
    click.echo("cleared what was left")


def _end(state: StateDir) -> None:
    record = state.load()
    # The owner is checked by its start time: its pid may be another's by now.
    if record is None or not record.owner.alive():
        raise fail(f"{state.path} is held by a process that is not on record", FAILED)
    os.kill(record.owner.pid, signal.SIGTERM)
    click.echo(f"ending the cluster of process {record.owner.pid}")
    deadline = time.monotonic() + PATIENCE
    while state.held():
        if time.monotonic() > deadline:
            raise fail(
                f"process {record.owner.pid} has not ended within {PATIENCE:.0f} s: "
                f"`kill -9 {record.owner.pid}`, then this command again",
                FAILED,
            )
        time.sleep(0.1)
