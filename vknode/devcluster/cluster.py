"""The development cluster: everything started in order, watched, broken and ended.

    programs → state directory → control plane → zones → agent's identity → pools → agent

Used by `vknode dev` and by the tests. One object is one run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from vknode.devcluster.controlplane import ControlPlane, Settings
from vknode.devcluster.kubectl import Kubectl
from vknode.devcluster.process import Child, Crash
from vknode.devcluster.programs.catalog import CONTROL_PLANE
from vknode.devcluster.programs.provide import require
from vknode.devcluster.state import StateDir

log = structlog.get_logger()


class DevCluster:
    """One run of a development cluster in `state_dir`.

    `zones=0, agent=False` is a bare control plane. `failed` is set, and `crashes`
    holds the reasons, when a child ended by itself.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        zones: int = 0,
        agent: bool = False,
        apiserver_port: int = 0,
        audit: bool = False,
        programs: Mapping[str, Path] | None = None,
    ) -> None:
        self.state = StateDir(state_dir)
        self._programs = programs
        self._settings = Settings(apiserver_port=apiserver_port, audit=audit)
        self.failed = asyncio.Event()
        self.crashes: list[Crash] = []
        self.control_plane: ControlPlane
        self.kubectl: Kubectl

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state.kubeconfig

    async def start(self) -> None:
        """Start everything; on any failure everything started is ended again."""
        programs = self._programs or require(CONTROL_PLANE)
        self.state.check()
        self.state.acquire()
        try:
            self.state.clear()
            self.state.begin()
            self.state.run.mkdir(mode=0o700)
            self.control_plane = ControlPlane(
                self.state.run,
                programs,
                logs=self.state.logs,
                kubeconfig=self.state.kubeconfig,
                settings=self._settings,
                on_crash=self._crashed,
                on_start=self._started,
            )
            self.control_plane.prepare()
            self.kubectl = Kubectl(
                programs["kubectl"], self.kubeconfig, self.state.run / "kubectl-cache"
            )
            await self.control_plane.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything and leave nothing but the logs."""
        if hasattr(self, "control_plane"):
            await self.control_plane.stop()
        self.state.clear()
        self.state.release()

    def _started(self, child: Child) -> None:
        self.state.add_process(child.name, child.pid)

    def _crashed(self, crash: Crash) -> None:
        self.crashes.append(crash)
        log.error("child_crashed", child=crash.name, returncode=crash.returncode)
        self.failed.set()
