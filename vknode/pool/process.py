"""The pool as a process: its parts put together, started in order and ended on SIGTERM.

| phase    | what happens                                                         |
|----------|----------------------------------------------------------------------|
| prepare  | logging, the state directory and its lock, the configuration files   |
| connect  | the runtime answers and the host has adopted what runs               |
| listen   | the endpoint is served; "pool_ready" is logged                       |
| serve    | until a signal, or until a background task breaks                    |
| end      | streams end within a second; sandboxes go on running                 |
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog

from vknode import __version__
from vknode.loop import LoopUnavailable, run_async
from vknode.pool.draining import follow, prepare, wanted
from vknode.pool.endpoint import Endpoint, EndpointError, TlsFiles
from vknode.pool.quantity import value
from vknode.pool.runtimes.base import Failure, Runtime

if TYPE_CHECKING:
    from vknode.pool.host import Host
    from vknode.pool.server import PoolServer

FAILED = 1
WRONG = 2
CANNOT_LISTEN = 3

log = structlog.get_logger()


class SettingsError(Exception):
    """Something that was configured cannot be used; the text names it and the fix."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Everything that `vknode pool` was told. `runtime` is "cri" or "sim"."""

    runtime: str
    zone: str
    region: str
    cells: int
    capacity: dict[str, str]
    endpoint: Endpoint
    state_dir: Path
    runtime_endpoint: str = ""
    sim_config: Path | None = None
    tls: TlsFiles | None = None
    log_format: str = "json"
    # What Pods may do on the runtime's host; see `CriOptions`.
    allow_host_path: tuple[str, ...] = ()
    allow_privileged: bool = False
    allow_host_namespaces: bool = False
    allow_unsafe_sysctl: tuple[str, ...] = ()
    deny_host_ports: bool = False
    seccomp_dir: Path | None = None
    resolv_conf: Path = Path("/etc/resolv.conf")
    cgroup_parent: str = ""
    container_log_max_size: int = 10 << 20
    container_log_max_files: int = 5


def run(settings: PoolSettings) -> int:
    """Serve until a signal. The process's exit code."""
    configure_logging(settings.log_format)
    try:
        with _locked(settings.state_dir):
            run_async(_serve(settings))
    except (SettingsError, LoopUnavailable) as error:
        click.echo(f"Error: {error}", err=True)
        return WRONG
    except EndpointError as error:
        click.echo(f"Error: {error}", err=True)
        return CANNOT_LISTEN
    except Failure as error:
        check = "; check that it runs and --runtime-endpoint" if settings.runtime == "cri" else ""
        click.echo(f"Error: the runtime cannot be used: {error.message}{check}", err=True)
        return FAILED
    return 0


def configure_logging(log_format: str) -> None:
    """One line an event, on standard error."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Two pools on one state directory would both drive its sandboxes."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(f"--state-dir {state_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"--state-dir {state_dir}: another pool uses it; stop that one or use another"
            ) from None
        yield
    finally:
        os.close(handle)


def make_runtime(settings: PoolSettings) -> Runtime:
    """Raises SettingsError."""
    if settings.runtime == "sim":
        from vknode.pool.runtimes.sim.config import SimConfig, SimConfigError, load_config
        from vknode.pool.runtimes.sim.journal import Journal
        from vknode.pool.runtimes.sim.runtime import SimRuntime

        try:
            config = load_config(settings.sim_config) if settings.sim_config else SimConfig()
        except SimConfigError as error:
            raise SettingsError(str(error)) from error
        journal = Journal(settings.state_dir / "sim.journal")
        return SimRuntime(config, zone=settings.zone, journal=journal)
    from vknode.pool.runtimes.cri.options import CriOptions
    from vknode.pool.runtimes.cri.rotation import LogPolicy
    from vknode.pool.runtimes.cri.runtime import CriRuntime

    return CriRuntime(
        CriOptions(
            endpoint=settings.runtime_endpoint,
            state_dir=settings.state_dir / "sandboxes",
            pool=settings.zone,
            host_path_prefixes=settings.allow_host_path,
            cell_memory=value(settings.capacity.get("memory", "0")),
            allow_privileged=settings.allow_privileged,
            allow_host_namespaces=settings.allow_host_namespaces,
            unsafe_sysctls=settings.allow_unsafe_sysctl,
            allow_host_ports=not settings.deny_host_ports,
            seccomp_dir=settings.seccomp_dir,
            resolv_conf=settings.resolv_conf,
            cgroup_parent=settings.cgroup_parent,
            logs=LogPolicy(settings.container_log_max_size, settings.container_log_max_files),
        )
    )


async def _serve(settings: PoolSettings) -> None:
    begin = time.monotonic()
    from vknode.pool.server import PoolServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = make_host(settings)
    server = PoolServer(host, settings.endpoint, settings.tls)
    started = asyncio.create_task(_start(host, server, settings.state_dir))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((started, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            log.info("pool_stopped_before_ready")
            return
        endpoint = started.result()
        log.info(
            "pool_ready",
            version=__version__,
            runtime=settings.runtime,
            zone=settings.zone,
            cells=settings.cells,
            endpoint=endpoint,
            seconds=round(time.monotonic() - begin, 3),
        )
        serving = asyncio.create_task(server.wait())
        draining = asyncio.create_task(follow(settings.state_dir, host.drain))
        tasks: tuple[asyncio.Task[Any], ...] = (serving, draining)
        try:
            await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not stop.is_set():
                    task.result()  # raises what broke
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        log.info("pool_stopping")
        for task in (started, stopping):
            task.cancel()
        await asyncio.gather(started, stopping, return_exceptions=True)
        await server.stop()
        await host.close()
        log.info("pool_stopped")


async def _start(host: Host, server: PoolServer, state_dir: Path) -> str:
    try:
        prepare(state_dir, host.cells.names)
        draining = wanted(state_dir)
    except OSError as error:
        raise SettingsError(f"--state-dir {state_dir}: {error.strerror}") from error
    await host.start()
    host.drain(draining)
    return await server.start()


def make_host(settings: PoolSettings) -> Host:
    """The host with its runtime and store. Raises SettingsError."""
    from vknode.pool.cells import CellBook
    from vknode.pool.host import Host
    from vknode.pool.store import FileStore

    try:
        store = FileStore(settings.state_dir / "specs")
    except OSError as error:
        raise SettingsError(f"--state-dir {settings.state_dir}: {error.strerror}") from error
    try:
        cells = CellBook.of_zone(
            settings.zone,
            settings.cells,
            settings.capacity,
            region=settings.region,
            labels={"vknode.dev/simulated": "true"} if settings.runtime == "sim" else {},
        )
    except ValueError as error:
        raise SettingsError(f"--zone, --cells or --cell-capacity: {error}") from error
    return Host(make_runtime(settings), store, cells)
