"""`vknode agent`: the process that owns the virtual nodes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click
import structlog

from vknode.agent.config import ConfigError, load_config
from vknode.compose.process import AgentFailed, ExitCode, run_agent
from vknode.loop import LoopUnavailable, run_async


@click.command(name="agent")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The agent's configuration, one YAML file.",
)
@click.option("--check", is_flag=True, help="Check the configuration file and end.")
def command(file: Path, check: bool) -> None:
    """Register virtual nodes and run their Pods on the pools.

    Exit status: 0 after SIGTERM or Ctrl-C; 2 for a wrong configuration, file or port; 3 if the
    API server refuses us (credentials or rights); 4 if it could not be reached at the start;
    1 for anything else."""
    try:
        config = load_config(file)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"Error: {problem}", err=True)
        sys.exit(ExitCode.CONFIG)
    if check:
        click.echo(f"{file} is right")
        return
    configure_logging(config.log_format)
    try:
        run_async(run_agent(config))
    except AgentFailed as failure:
        for line in str(failure).splitlines():
            click.echo(f"Error: {line}", err=True)
        sys.exit(failure.code)
    except LoopUnavailable as problem:
        click.echo(f"Error: {problem}", err=True)
        sys.exit(ExitCode.CONFIG)


def configure_logging(log_format: str) -> None:
    """structlog to standard error: `json` for machines, `console` for people.

    Tracebacks never show local variables: those hold Secrets."""
    final: list[Any]
    if log_format == "json":
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [
            structlog.processors.ExceptionRenderer(without_locals),
            structlog.processors.JSONRenderer(),
        ]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
