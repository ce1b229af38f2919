"""Option types that the pool's commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vknode.pool import quantity
from vknode.pool.quantity import is_amount
from vknode.pool.sysctls import bad_pattern

_RESOLV_CONF = Path("/etc/resolv.conf")
_RESOURCE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?")


class Capacity(click.ParamType[dict[str, str]]):
    """`cpu=8,memory=16Gi,pods=110`: Kubernetes resource names and quantities."""

    name = "resource=quantity,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Resource names to quantities."""
        if isinstance(value, dict):
            return value
        found: dict[str, str] = {}
        for part in str(value).split(","):
            resource, equals, amount = part.strip().partition("=")
            if not equals or not _RESOURCE.fullmatch(resource):
                self.fail(f"{part!r} is not RESOURCE=QUANTITY, as in cpu=8", param, ctx)
            if not is_amount(amount):
                self.fail(f"{resource}: {amount!r} is no quantity, as 8, 500m or 16Gi", param, ctx)
            if resource in found:
                self.fail(f"{resource} is given twice", param, ctx)
            found[resource] = amount
        for resource in ("cpu", "memory", "pods"):
            if resource not in found:
                self.fail(
                    f"{resource} is missing; give it as in cpu=8,memory=16Gi,pods=110", param, ctx
                )
        return found


class Size(click.ParamType[int]):
    """A Kubernetes quantity of bytes."""

    name = "quantity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        if not is_amount(str(value)):
            self.fail(f"{value!r} is no quantity, as 10Mi", param, ctx)
        return quantity.value(str(value))


def _host_path(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        if not value.startswith("/"):
            raise click.BadParameter(f"{value!r} is not an absolute path")
    return values


def _sysctl(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        bad = bad_pattern(value)
        if bad:
            raise click.BadParameter(f"{value!r}: {bad}")
    return values


def _cgroup(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value and not value.startswith("/") and not value.endswith(".slice"):
        raise click.BadParameter(f"{value!r} is neither a path from / nor a slice of systemd")
    return value.rstrip("/")


def _file(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    # A host may do without the usual one.
    if value != _RESOLV_CONF and not value.is_file():
        raise click.BadParameter(f"{str(value)!r} is not a file")
    return value


Command = TypeVar("Command", bound=Callable[..., Any])
# What Pods may do on the runtime's host; all for --runtime cri.
_CRI = (
    click.option(
        "--allow-host-path",
        multiple=True,
        metavar="PREFIX",
        callback=_host_path,
        help="Let hostPath volumes below PREFIX through (cri). May be repeated. The pool checks "
        "and binds the paths itself: one that runs in a container must see them at the same place.",
    ),
    click.option(
        "--allow-privileged",
        is_flag=True,
        help="Let privileged containers and any SELinux label through (cri).",
    ),
    click.option(
        "--allow-host-namespaces",
        is_flag=True,
        help="Let Pods use the network, processes or IPC of their host (cri).",
    ),
    click.option(
        "--allow-unsafe-sysctl",
        multiple=True,
        metavar="NAME|PREFIX*",
        callback=_sysctl,
        help="Kernel parameters beside the safe ones that Pods may set (cri). May be repeated.",
    ),
    click.option(
        "--deny-host-ports", is_flag=True, help="Refuse Pods that want ports of their host (cri)."
    ),
    click.option(
        "--seccomp-dir",
        type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
        help="Folder of the seccomp profiles that Pods may name (cri). Without it, none.",
    ),
    click.option(
        "--resolv-conf",
        type=click.Path(path_type=Path),
        default=_RESOLV_CONF,
        callback=_file,
        help="The runtime's own resolver configuration, which a Pod's dnsConfig adds to (cri).",
    ),
    click.option(
        "--cgroup-parent",
        default="",
        metavar="PATH",
        callback=_cgroup,
        show_default=False,
        help="Control group above the Pods' own (cri). Default: /vknode/ZONE.",
    ),
    click.option(
        "--container-log-max-size",
        type=Size(),
        default="10Mi",
        help="Size at which a container's log is rotated (cri); 0: never.",
    ),
    click.option(
        "--container-log-max-files",
        type=click.IntRange(2),
        default=5,
        help="Log files kept of a container (cri).",
    ),
)


def cri_options(command: Command) -> Command:
    """Adds them all; their parameters are those of `PoolSettings`."""
    for option in reversed(_CRI):
        command = option(command)
    return command


def given(ctx: click.Context, parameters: dict[str, Any]) -> list[str]:
    """The options among `parameters` that the user gave."""
    names = {p.name: p.opts[0] for p in ctx.command.params}
    default = click.core.ParameterSource.DEFAULT
    return [names[n] for n in parameters if ctx.get_parameter_source(n) is not default]
