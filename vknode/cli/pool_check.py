"""`vknode pool-check`: the contract test suite against any endpoint.

Exit codes: 0 when every check passed, 1 when one failed, 2 for wrong options, 3 when no
pool answers.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vknode.pool.check.run import Result


@click.command(name="pool-check", context_settings={"show_default": True})
@click.argument("endpoint", metavar="ENDPOINT")
@click.option("--image", default="busybox:latest", help="An image with busybox's programs.")
@click.option("--cell", default="", help="The cell to use; the first healthy one if empty.")
@click.option("--runtime-handler", default="", help="The runtime handler to ask for.")
@click.option(
    "--check", "names", multiple=True, metavar="NAME", help="Only this check; repeatable."
)
@click.option("--parallel", type=click.IntRange(1, 64), default=4, help="Checks at once.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=60.0, help="Seconds for a start or an end."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--list", "list_only", is_flag=True, help="List the checks and do nothing.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Our certificate (TCP).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="CA of the pool's certificate.")
@click.option("--tls-server-name", default="", help="The name to expect in it.")
def command(
    endpoint: str,
    image: str,
    cell: str,
    runtime_handler: str,
    names: tuple[str, ...],
    parallel: int,
    timeout: float,
    as_json: bool,
    list_only: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    tls_server_name: str,
) -> None:
    """Test the pool at ENDPOINT (unix:PATH or HOST:PORT) against the contract.

    It makes sandboxes in the namespace "pool-check" and removes them again.
    """
    import structlog

    from vknode.pool.check.run import Unreachable, all_checks, run_checks
    from vknode.pool.check.suite import Settings
    from vknode.pool.endpoint import EndpointError, TlsFiles

    # What the client logs is in the results too; standard output is theirs.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    known = {check.name: check.proves for check in all_checks()}
    if list_only:
        for name, proves in known.items():
            click.echo(f"{name}: {proves}")
        return
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"no check is named {name!r}; see --list", param_hint="--check"
            )
    tls = None
    if tls_cert is not None and tls_key is not None and tls_ca is not None:
        tls = TlsFiles(tls_cert, tls_key, tls_ca, tls_server_name)
    elif tls_cert is not None or tls_key is not None or tls_ca is not None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-ca must be given together")

    def progress(result: Result) -> None:
        if not as_json:
            click.echo(f"{result.outcome:8}{result.name} ({result.seconds:.1f} s)", err=True)

    try:
        results = asyncio.run(
            run_checks(
                endpoint,
                tls,
                Settings(image, cell, runtime_handler, timeout),
                names=names,
                parallel=parallel,
                on_result=progress,
            )
        )
    except EndpointError as error:
        raise click.UsageError(str(error)) from error
    except Unreachable as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(3) from None
    if as_json:
        click.echo(json.dumps(_summary(endpoint, results)))
    else:
        _print_table(endpoint, results)
    if any(result.outcome == "failed" for result in results):
        raise SystemExit(1)


def _summary(endpoint: str, results: list[Result]) -> dict[str, object]:
    counts = {
        outcome: sum(result.outcome == outcome for result in results)
        for outcome in ("passed", "failed", "skipped")
    }
    return {
        "endpoint": endpoint,
        **counts,
        "checks": [
            {
                "name": result.name,
                "proves": result.proves,
                "outcome": result.outcome,
                "seconds": round(result.seconds, 3),
                "message": result.message,
            }
            for result in results
        ],
    }


def _print_table(endpoint: str, results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Pool contract at {endpoint}")
    for heading in ("check", "outcome", "seconds", "what it proves, or what was seen"):
        table.add_column(heading)
    colours = {"passed": "green", "failed": "red", "skipped": "yellow"}
    for result in results:
        table.add_row(
            result.name,
            Text(result.outcome, style=colours[result.outcome]),
            f"{result.seconds:.1f}",
            Text(result.message or result.proves),
        )
    console = Console()
    console.print(table)
    failed = sum(result.outcome == "failed" for result in results)
    console.print(f"{len(results) - failed} of {len(results)} checks did not fail")
