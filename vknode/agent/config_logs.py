"""What the folder of `kubelet.systemLogs` must not be, nor have in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vknode.agent.config_reader import Reader
from vknode.kube.errors import ConnectionConfigError
from vknode.kube.kubeconfig import inspect_kubeconfig

#: The kernel's own, with what it knows of processes: memory, environments, open files.
_KERNEL = (Path("/proc"), Path("/sys"), Path("/dev"))


def check_system_logs(root: Reader, folder: Path, secrets: Mapping[str, Path | None]) -> None:
    """Who may read logs must not become the agent by it, or a pool. `secrets`: files and folders,
    by the fields that name them; what the kubeconfig names is looked up. What an exec plugin
    reads nobody knows here."""
    here = _real(folder)
    for kernel in _KERNEL:
        if here.is_relative_to(kernel):
            root.problem(
                "kubelet.systemLogs",
                f"{folder} is in {kernel}, where the kernel tells of this host",
                "name a folder that holds logs only",
            )
            return
    kubeconfig = secrets.get("kubeconfig")
    for field, secret in {**secrets, **_named_by(kubeconfig)}.items():
        if secret is not None and _real(secret).is_relative_to(here):
            root.problem(
                "kubelet.systemLogs",
                f"{folder} would show {secret} ({field}) to whoever may read logs",
                "name a folder that holds logs only",
            )


def _named_by(kubeconfig: Path | None) -> dict[str, Path]:
    """Of one that cannot be used nothing: with it the agent does not start, and says why."""
    if kubeconfig is None or not kubeconfig.is_file():
        return {}
    try:
        facts = inspect_kubeconfig(kubeconfig, None)
    except ConnectionConfigError:
        return {}
    return {f"{field} of {kubeconfig}": path for field, path in facts.secrets.items()}


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve` no loop of them stops it."""
    return Path(os.path.realpath(path))
