"""`vknode pool`: serve one pool over a container runtime, or a simulated one.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a wrong option or configuration, 1 when the
runtime cannot be used, 3 when the endpoint cannot be listened on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from vknode.cli.pool_options import Capacity, cri_options, given

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def _label(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value and not _NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not a DNS label (small letters, digits, '-')")
    return value


@click.command(name="pool", context_settings={"show_default": True})
@click.option(
    "--runtime", type=click.Choice(["cri", "sim"]), required=True, help="What runs sandboxes."
)
@click.option("--zone", required=True, callback=_label, help="Failure zone of all cells.")
@click.option("--region", default="", callback=_label, help="Region of all cells.")
@click.option("--cells", type=click.IntRange(1, 10_000), default=1, help="Number of cells.")
@click.option(
    "--cell-capacity",
    type=Capacity(),
    default="cpu=8,memory=16Gi,pods=110",
    help="Capacity of each cell.",
)
@click.option("--listen", required=True, metavar="unix:PATH|HOST:PORT", help="Where to serve.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where specs are kept over a restart. One pool a directory.",
)
@click.option(
    "--runtime-endpoint",
    default="unix:///run/containerd/containerd.sock",
    help="CRI socket (cri).",
)
@click.option(
    "--sim-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Latencies and failures (sim).",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Serving certificate (TCP).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option("--tls-client-ca", type=click.Path(path_type=Path), help="CA of the clients.")
@click.option("--log-format", type=click.Choice(["json", "console"]), default="json")
@cri_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    runtime: str,
    zone: str,
    region: str,
    cells: int,
    cell_capacity: dict[str, str],
    listen: str,
    state_dir: Path,
    runtime_endpoint: str,
    sim_config: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    log_format: str,
    **cri: Any,
) -> None:
    """Serve a pool: run sandboxes over a container runtime."""
    from vknode.pool.endpoint import EndpointError, TlsFiles, parse_endpoint

    try:
        endpoint = parse_endpoint(listen)
    except EndpointError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from error
    tls = None
    if tls_cert is not None and tls_key is not None and tls_client_ca is not None:
        tls = TlsFiles(tls_cert, tls_key, tls_client_ca)
    elif tls_cert is not None or tls_key is not None or tls_client_ca is not None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-client-ca must be given together")
    if runtime == "cri" and sim_config is not None:
        raise click.UsageError("--sim-config is for --runtime sim")
    if runtime == "sim" and (wrong := given(ctx, cri)):
        raise click.UsageError(f"{wrong[0]} is for --runtime cri")

    from vknode.pool import process

    raise SystemExit(
        process.run(
            process.PoolSettings(
                runtime=runtime,
                zone=zone,
                region=region,
                cells=cells,
                capacity=cell_capacity,
                endpoint=endpoint,
                state_dir=state_dir,
                runtime_endpoint=runtime_endpoint,
                sim_config=sim_config,
                tls=tls,
                log_format=log_format,
                **cri,
            )
        )
    )
