"""`vknode`: the group of commands. Each lives in a module of its own, imported when it
is called, so that `vknode pool` does not pay for the agent's imports, nor help for any.
"""

from __future__ import annotations

import importlib

import click

from vknode import __version__

#: Command → (module, one line of help). The module has the click command as `command`.
COMMANDS = {
    "agent": ("vknode.cli.agent", "Register virtual nodes and run their Pods on the pools."),
    "pool": ("vknode.cli.pool", "Serve a pool: run sandboxes over a container runtime."),
    "pool-drain": ("vknode.cli.pool_drain", "Empty cells of a pool, or open them again."),
    "pool-check": ("vknode.cli.pool_check", "Test any pool endpoint against the contract."),
    "dev": ("vknode.cli.dev", "Run a development cluster of real Kubernetes."),
    "demo": ("vknode.cli.demo", "Show the main job on a fresh development cluster."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is wanted."""

    def __init__(self, commands: dict[str, tuple[str, str]], **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]  # click types each setting by name
        self._lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(self._lazy[cmd_name][0])
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])


main = LazyGroup(
    COMMANDS,
    name="vknode",
    help="Shows a serverless container pool to Kubernetes as many virtual nodes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
main = click.version_option(__version__, prog_name="vknode")(main)
