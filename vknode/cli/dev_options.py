"""Options and small helpers that the `vknode dev` commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from vknode.devcluster.state import StateDir, default_state_dir

#: Exit statuses beyond click's 2 for wrong usage.
FAILED = 1  # it broke, or something was left behind
REFUSED = 3  # it cannot run here or like this, and nothing was started
INTERRUPTED = 130


class Duration(click.ParamType[float]):
    """`60s`, `2m`, `1h30m`, or a number of seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
        if not text or found is None:
            self.fail(f"{text!r} is no duration: write 60s, 2m or 1h30m", param, ctx)
        hours, minutes, seconds = found.groups()
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_state_dir,
    envvar="VKNODE_DEV_STATE",
    show_default="~/.local/state/vknode/dev",
    help="Where the cluster keeps everything: kubeconfig, logs, containers.",
)


def state_flag(state: StateDir) -> str:
    """` --state-dir DIR` for a command to be typed next, or nothing for the default."""
    return "" if state.path == default_state_dir().resolve() else f" --state-dir {state.path}"


def fail(text: str, status: int) -> click.exceptions.Exit:
    """Say what is wrong on standard error; raise the result to leave."""
    click.echo(f"Error: {text}", err=True)
    return click.exceptions.Exit(status)
