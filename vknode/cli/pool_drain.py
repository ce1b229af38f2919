"""`vknode pool-drain`: empty cells of a pool of ours on this machine, for maintenance.

Exit codes: 0 when it is written down, 2 for a wrong option or cell.
"""

from __future__ import annotations

from pathlib import Path

import click

from vknode.pool.draining import UnknownCell, change


@click.command(name="pool-drain")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The pool's own.",
)
@click.option("--undo", is_flag=True, help="Open the cells again.")
@click.argument("cells", nargs=-1, required=True, metavar="CELL...")
def command(state_dir: Path, undo: bool, cells: tuple[str, ...]) -> None:
    """Empty cells: their nodes are cordoned, and their Pods end within their own grace, as on
    a node that is shut down gracefully. Holds over restarts of the pool, until --undo; Pods
    that are ending already are not spared by that.

    To empty a node within disruption budgets use `kubectl drain` instead."""
    try:
        change(state_dir, cells, drain=not undo)
    except UnknownCell as error:
        raise click.UsageError(f"CELL: {error}") from None
    except FileNotFoundError:
        raise click.UsageError(
            f"--state-dir {state_dir}: no pool keeps its state there; name the folder that "
            "`vknode pool --state-dir` has"
        ) from None
    except OSError as error:
        raise click.UsageError(f"--state-dir {state_dir}: {error.strerror}") from None
    for cell in cells:
        click.echo(f"cell {cell} takes sandboxes again" if undo else f"cell {cell} will be emptied")
