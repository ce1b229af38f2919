"""`vknode dev`: a development cluster of real Kubernetes, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vknode.cli.dev_options import FAILED, INTERRUPTED, REFUSED, fail, state_dir_option, state_flag
from vknode.cli.main import LazyGroup
from vknode.cli.pool_options import Capacity

if TYPE_CHECKING:
    from vknode.devcluster.cluster import DevCluster

SUBCOMMANDS = {
    "stop": ("vknode.cli.dev_stop", "End a running cluster, or clear what a killed one left."),
    "status": ("vknode.cli.dev_status", "Show what runs."),
    "fault": ("vknode.cli.dev_fault", "Break a zone, a pool, the agent or the API server."),
}


@click.group(name="dev", cls=LazyGroup, commands=SUBCOMMANDS, invoke_without_command=True)
@click.pass_context
@click.option(
    "--runtime",
    type=click.Choice(["cri", "sim"]),
    default="cri",
    show_default=True,
    help="cri: a real containerd per zone (needs root). sim: simulated containers.",
)
@click.option("--zones", type=click.IntRange(1, 26), default=3, show_default=True)
@click.option("--cells-per-zone", type=click.IntRange(1, 1000), default=2, show_default=True)
@click.option(
    "--cell-capacity",
    type=Capacity(),
    default="cpu=8,memory=16Gi,pods=110",
    show_default=True,
    help="What each cell, and so each node, offers.",
)
@click.option(
    "--apiserver-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The API server's port on 127.0.0.1.  [default: any free one]",
)
@click.option(
    "--sim-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Latency and failures of --runtime sim (YAML).",
)
@click.option("--fault-proxy", is_flag=True, help="Put the fault proxy before the API server.")
@click.option("--audit", is_flag=True, help="Log every API request to logs/audit.log.")
@state_dir_option
def command(
    ctx: click.Context,
    runtime: str,
    zones: int,
    cells_per_zone: int,
    cell_capacity: dict[str, str],
    apiserver_port: int,
    sim_config: Path | None,
    fault_proxy: bool,
    audit: bool,
    state_dir: Path,
) -> None:
    """Run etcd, the control plane, one containerd and one pool per zone, and the agent.

    Ends with Ctrl-C or `vknode dev stop`, and leaves nothing but its logs."""
    if ctx.invoked_subcommand is not None:
        return
    _check_sim_config(runtime, sim_config)
    # Imported here: `vknode dev status` should not wait for a cluster's imports.
    from vknode.devcluster.cluster import DevCluster, Refused, refuse_without_privileges
    from vknode.devcluster.images import ImagesUnavailable
    from vknode.devcluster.kubectl import KubectlFailed
    from vknode.devcluster.network import NetworkFailed
    from vknode.devcluster.ports import PortTaken
    from vknode.devcluster.process import ChildFailed
    from vknode.devcluster.programs import ProgramsMissing, provide
    from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE
    from vknode.devcluster.state import StateInUse, StateUnusable

    try:
        if runtime == "cri":
            refuse_without_privileges()
        programs = provide(CONTROL_PLANE + (CONTAINERD if runtime == "cri" else ()))

        def make() -> DevCluster:
            return DevCluster(
                state_dir,
                runtime=runtime,
                zones=zones,
                cells_per_zone=cells_per_zone,
                cell_capacity=",".join(f"{name}={value}" for name, value in cell_capacity.items()),
                apiserver_port=apiserver_port,
                sim_config=sim_config,
                fault_proxy=fault_proxy,
                audit=audit,
                programs=programs,
                report=click.echo,
            )

        status = asyncio.run(_run(make))
    except KeyboardInterrupt:
        raise fail("interrupted", INTERRUPTED) from None
    except (Refused, StateInUse, StateUnusable, PortTaken, ProgramsMissing) as problem:
        raise fail(str(problem), REFUSED) from None
    except (ChildFailed, KubectlFailed, NetworkFailed, ImagesUnavailable) as problem:
        raise fail(f"the cluster did not start, and was ended again: {problem}", FAILED) from None
    except OSError as problem:
        # A full disk above all: everything started has been ended again by now.
        where = f" ({problem.filename})" if problem.filename else ""
        raise fail(f"{problem.strerror or problem}{where}", FAILED) from None
    ctx.exit(status)


def _check_sim_config(runtime: str, file: Path | None) -> None:
    """Before anything starts: the pools would only say it each in its own log."""
    if file is None:
        return
    if runtime != "sim":
        raise click.UsageError("--sim-config is for --runtime sim")
    from vknode.pool.runtimes.sim.config import SimConfigError, load_config

    try:
        load_config(file)
    except SimConfigError as error:
        raise click.BadParameter(str(error), param_hint="--sim-config") from None


async def _run(make: Callable[[], DevCluster]) -> int:
    """Start, wait, stop. The exit status: 0, or 1 after a crash or with leftovers."""
    from vknode.devcluster.control import ControlServer

    cluster = make()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    begun = time.monotonic()
    starting = asyncio.create_task(cluster.start(), name="start")

    def asked() -> None:
        # Before all is up, ending means to give up the start, which ends what is there.
        starting.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked)
    try:
        await starting
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    control = ControlServer(cluster)
    try:
        await control.start()
        click.echo(_what_next(cluster, time.monotonic() - begun))
        waits = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(control.stop_asked.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        click.echo("ending everything")
    finally:
        await control.stop()
        await cluster.stop()
    for left in cluster.leftovers:
        click.echo(f"left behind: {left}", err=True)
    return FAILED if cluster.leftovers or cluster.crashes else 0


def _what_next(cluster: DevCluster, seconds: float) -> str:
    from vknode.devcluster.identity import manifests_folder

    nodes, zones = len(cluster.node_names), len(cluster.zones)
    kubectl = "kubectl"
    on_path = shutil.which(kubectl)
    if on_path is None or Path(on_path).resolve() != cluster.kubectl.program.resolve():
        # Whatever is on PATH may be releases away from this API server.
        kubectl = str(cluster.kubectl.program)
    vknode = "vknode"
    if shutil.which(vknode) is None:
        vknode = str(Path(sys.executable).parent / vknode)
    example = manifests_folder() / "examples" / "web.yaml"
    shown = os.path.relpath(example) if example.is_relative_to(Path.cwd()) else str(example)
    flag = state_flag(cluster.state)
    last = list(cluster.zones)[-1]
    proxy = ""
    if cluster.fault_admin is not None:
        proxy = f"\nThe fault proxy's levers are at {cluster.fault_admin.url}/faults."
    return f"""
Ready in {seconds:.1f} s: {nodes} nodes in {zones} zones, runtime {cluster.runtime}. Try:

  export KUBECONFIG={cluster.kubeconfig}
  {kubectl} get nodes -L topology.kubernetes.io/zone
  {kubectl} apply -f {shown}
  {kubectl} get pods -o wide -w
  {vknode} dev fault zone {last} --for 60s{flag}    # in another terminal: watch it heal

Logs are in {cluster.state.logs}. Ctrl-C, or `{vknode} dev stop{flag}`, ends it.{proxy}"""
