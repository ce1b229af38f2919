"""The development cluster: everything started in order, watched, broken and ended.

    programs → state directory → control plane ─┐
                                 zones (containerd, network) ─┤→ identity → pools → agent → Ready

Used by `vknode dev` and by the tests. One object is one run. Whatever step fails,
everything started so far is ended again before the error is raised.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from vknode.devcluster import network
from vknode.devcluster.agentproc import LOOPBACK, AgentFiles, serving_certificate, write_config
from vknode.devcluster.controlplane import ControlPlane, Settings, client_context
from vknode.devcluster.faultadmin import FaultAdmin
from vknode.devcluster.faultproxy import FaultProxy
from vknode.devcluster.identity import grant
from vknode.devcluster.imagelayout import Archive
from vknode.devcluster.kubectl import Kubectl
from vknode.devcluster.metricsserver import MetricsServer
from vknode.devcluster.nodes import wait_for_nodes
from vknode.devcluster.process import Child, ChildFailed, Crash, log_tail
from vknode.devcluster.programs.cache import cache_root
from vknode.devcluster.programs.catalog import CONTAINERD, CONTROL_PLANE, METRICS_SERVER
from vknode.devcluster.programs.provide import locate, require
from vknode.devcluster.state import StateDir, ZoneRecord
from vknode.devcluster.sweep import sweep
from vknode.devcluster.together import together
from vknode.devcluster.zone import PoolOptions, Zone, prepare_images

log = structlog.get_logger()

#: Seconds until nodes that are not all Ready count as a failed start.
NODES_WITHIN = 120.0


class Refused(Exception):
    """The cluster cannot be run here or like this; the text says why and what to do."""


class DevCluster:
    """One run of a development cluster in `state_dir`.

    `zones=0, agent=False` is a bare control plane; with `pools=False, agent=False` zones are
    a containerd and a network, for another node agent to use. `failed` is set, and `crashes`
    holds the reasons, when a child ended by itself. `report` is told of each step.
    `more_images` are loaded into every zone beside the cluster's own, and images of the
    registries in `mirrors` (host: URL) are pulled from there. With `metrics_server` there is a
    real one, so that `kubectl top` and autoscalers work.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        runtime: str = "cri",
        zones: int = 3,
        cells_per_zone: int = 2,
        cell_capacity: str = "cpu=8,memory=16Gi,pods=110",
        agent: bool = True,
        pools: bool = True,
        fault_proxy: bool = False,
        metrics_server: bool = False,
        apiserver_port: int = 0,
        kubelet_port: int = 0,
        audit: bool = False,
        apiserver_features: Mapping[str, bool] | None = None,
        audit_users: Sequence[str] = (),
        sim_config: Path | None = None,
        agent_config: Mapping[str, Any] | None = None,
        pool_flags: Sequence[str] = (),
        more_images: Sequence[Archive] = (),
        mirrors: Mapping[str, str] | None = None,
        programs: Mapping[str, Path] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        if runtime not in ("cri", "sim"):
            raise Refused(f"runtime is {runtime!r}: must be cri or sim")
        self.state = StateDir(state_dir)
        self.runtime = runtime
        self.id = uuid.uuid4().hex[:6]
        self.zones: dict[str, Zone] = {}
        self.failed = asyncio.Event()
        self.crashes: list[Crash] = []
        self.leftovers: list[str] = []
        self.control_plane: ControlPlane
        self.kubectl: Kubectl
        self.agent: Child | None = None
        self.agent_files: AgentFiles | None = None
        self.proxy: FaultProxy | None = None
        self.fault_admin: FaultAdmin | None = None
        self.metrics_server: MetricsServer | None = None
        self._programs = dict(programs) if programs else None
        self._zone_names = [f"az{number}" for number in range(1, zones + 1)]
        self._options = PoolOptions(
            runtime, cells_per_zone, cell_capacity, sim_config=sim_config, flags=tuple(pool_flags)
        )
        self._more_images = tuple(more_images)
        self._mirrors = mirrors
        self._want_agent = agent
        self._want_pools = pools
        self._want_proxy = fault_proxy
        self._want_metrics_server = metrics_server
        self._kubelet_port = kubelet_port
        self._agent_config = agent_config
        self._settings = Settings(
            apiserver_port=apiserver_port,
            audit=audit,
            audit_users=tuple(audit_users),
            apiserver_features=apiserver_features or {},
        )
        self._report = report or (lambda text: log.info("dev_cluster", said=text))
        self._images = Path()
        self._acquired = False

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state.kubeconfig

    @property
    def node_names(self) -> list[str]:
        """The nodes that all zones' cells become."""
        return [cell for zone in self.zones.values() for cell in zone.cells]

    # -- start and stop

    async def start(self) -> None:
        """Start everything and wait until all nodes are Ready.

        Raises Refused, ProgramsMissing, StateInUse, StateUnusable, PortTaken, NetworkFailed,
        ImagesUnavailable, ChildFailed, KubectlFailed; nothing is left started then."""
        programs = self._check()
        self.state.acquire()
        self._acquired = True
        try:
            await self._start(programs)
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    def _check(self) -> Mapping[str, Path]:
        """All that can be refused before anything is touched."""
        containers = self.runtime == "cri" and self._zone_names
        if containers:
            refuse_without_privileges()
        if self._programs is None:
            self._programs = require(
                CONTROL_PLANE
                + (CONTAINERD if containers else ())
                + ((METRICS_SERVER,) if self._want_metrics_server else ())
            )
        self.state.check(tuple(self._zone_names))
        return self._programs

    async def _start(self, programs: Mapping[str, Path]) -> None:
        await self._clear_previous_run()
        self.state.begin()
        self.state.run.mkdir(mode=0o700)
        self.control_plane = plane = ControlPlane(
            self.state.run,
            programs,
            logs=self.state.logs,
            kubeconfig=self.kubeconfig,
            settings=self._settings,
            on_crash=self._crashed,
            on_start=self._started,
        )
        plane.prepare()
        self.kubectl = Kubectl(
            programs["kubectl"], self.kubeconfig, self.state.run / "kubectl-cache"
        )
        self._report("starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler")
        await together(plane.start(), self._start_zones(programs))
        if self._want_agent:
            await self._start_agent_first(plane)
        if self._want_metrics_server:
            await self._start_metrics_server(plane, programs)

    async def _clear_previous_run(self) -> None:
        previous = self.state.load()
        if previous is not None:
            self._report("clearing what an earlier run left behind")
            programs = locate(("ip", "iptables")).found
            left = await asyncio.to_thread(sweep, previous, programs)
            if left:
                raise Refused(
                    "an earlier run could not be cleared; still there: " + "; ".join(left)
                )
        left = self.state.clear()
        if left:
            raise Refused("cannot clear the state directory: " + "; ".join(left))
        for old in self.state.logs.glob("*.log"):
            old.unlink()

    async def _start_zones(self, programs: Mapping[str, Path]) -> None:
        if not self._zone_names:
            return
        networks: Mapping[str, network.ZoneNetwork] = {}
        if self.runtime == "cri":
            networks = await asyncio.to_thread(self._make_networks, programs)
            cache = cache_root(os.environ).parent / "images"
            self._images = await prepare_images(programs["busybox"], cache)
            self._report(f"starting containerd for {', '.join(self._zone_names)}")
        for name in self._zone_names:
            folder = self.state.run / "zones" / name
            folder.mkdir(parents=True)
            self.zones[name] = Zone(
                name,
                folder,
                logs=self.state.logs,
                options=self._options,
                programs=programs,
                network=networks.get(name),
                more_images=self._more_images,
                mirrors=self._mirrors,
                on_crash=self._crashed,
                on_start=self._started,
            )
        zones_alive = (
            zone.restore(self._images, pool=self._want_pools) for zone in self.zones.values()
        )
        await together(*zones_alive)

    def _make_networks(self, programs: Mapping[str, Path]) -> dict[str, network.ZoneNetwork]:
        """Choose subnets and make bridges and firewall rules, on record before they exist."""
        mark = f"vknode-dev-{self.id}"
        with network.reserving():
            block = network.choose_block(network.current_routes(programs["ip"]))
            networks = network.plan(self.id, self._zone_names, block)
            records = [
                ZoneRecord(name, str(self.state.run / "zones" / name), one.name, one.bridge)
                for name, one in networks.items()
            ]
            self.state.add_zones(records, mark)
            for one in networks.values():
                network.make_bridge(programs["ip"], one)
        network.open_firewall(programs["iptables"], block, mark)
        return networks

    async def _start_agent_first(self, plane: ControlPlane) -> None:
        """Give the agent its identity, start it and wait for its nodes."""
        server = plane.url
        if self._want_proxy:
            self.proxy = FaultProxy(
                upstream=plane.url,
                upstream_ca=plane.authority.cert,
                serving=plane.authority.issue("fault-proxy", "fault-proxy", ips=["127.0.0.1"]),
            )
            await self.proxy.start()
            self.fault_admin = FaultAdmin(self.proxy)
            await self.fault_admin.start()
            server = self.proxy.url
        self._report("granting the agent its rights (manifests/base/rbac)")
        kubeconfig = await grant(
            self.kubectl,
            self.state.run / "agent.kubeconfig",
            server=server,
            ca_pem=plane.authority.pem,
            nodes=self.node_names,
        )
        # A bridge's own address is reached by the API server and by Pods, and by nobody
        # outside this machine. Zones without a network have simulated containers.
        networks = [zone.network for zone in self.zones.values() if zone.network is not None]
        address = str(networks[0].gateway) if networks else LOOPBACK
        self.agent_files = write_config(
            self.state.run / "agent.yaml",
            kubeconfig=kubeconfig,
            pools={name: f"unix:{zone.pool_socket}" for name, zone in self.zones.items()},
            serving=serving_certificate(plane.authority, address),
            client_ca=plane.authority.cert,
            address=address,
            kubelet_port=self._kubelet_port,
            overrides=self._agent_config,
        )
        self.agent = Child(
            "agent",
            self.agent_files.command,
            log=self.state.logs / "agent.log",
            on_crash=self._crashed,
            on_start=self._started,
        )
        await self.agent.start()
        self._report(f"waiting for {len(self.node_names)} nodes")
        await self.wait_nodes_ready()

    async def _start_metrics_server(
        self, plane: ControlPlane, programs: Mapping[str, Path]
    ) -> None:
        self._report("starting metrics-server")
        self.metrics_server = MetricsServer(
            programs[METRICS_SERVER],
            plane,
            self.kubectl,
            on_crash=self._crashed,
            on_start=self._started,
        )
        await self.metrics_server.start()

    async def stop(self) -> None:
        """End everything; `leftovers` then holds what could not be removed (else empty)."""
        if not self._acquired:
            return
        polite = [zone.pool for zone in self.zones.values()]
        if self.agent is not None:
            polite.append(self.agent)
        await asyncio.gather(*(child.stop(grace=3) for child in polite))
        containerds = [zone.containerd for zone in self.zones.values() if zone.containerd]
        await asyncio.gather(*(one.kill() for one in containerds))
        if self.metrics_server is not None:
            await self.metrics_server.kill()
        if self.fault_admin is not None:
            await self.fault_admin.stop()
        if self.proxy is not None:
            await self.proxy.stop()
        if hasattr(self, "control_plane"):
            await self.control_plane.stop()
        if self.state.record is not None and self._programs is not None:
            self.leftovers = await asyncio.to_thread(sweep, self.state.record, self._programs)
        if not self.leftovers:
            # With something left, the record must stay: `vknode dev stop` tries again.
            self.leftovers = await asyncio.to_thread(self.state.clear)
        self.state.release()
        self._acquired = False

    # -- waiting

    def session(self) -> aiohttp.ClientSession:
        """An HTTP session to the API server as its administrator; the caller closes it."""
        plane = self.control_plane
        context = client_context(plane.authority.cert, plane.admin)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))

    async def wait_nodes(
        self, done: Callable[[dict[str, bool]], bool], *, timeout: float = NODES_WITHIN
    ) -> dict[str, bool]:
        """Wait until `done` is true of {node: ready}. Raises TimeoutError."""
        async with self.session() as session:
            return await wait_for_nodes(session, self.control_plane.url, done, timeout=timeout)

    async def wait_nodes_ready(self, *, timeout: float = NODES_WITHIN) -> None:
        """Wait until exactly the expected nodes exist and are Ready.

        Raises ChildFailed at once if a child crashes meanwhile, or when time is up."""
        expected = set(self.node_names)
        waiting = asyncio.ensure_future(
            self.wait_nodes(
                lambda seen: set(seen) >= expected and all(seen[one] for one in expected),
                timeout=timeout,
            )
        )
        crashing = asyncio.ensure_future(self.failed.wait())
        try:
            await asyncio.wait((waiting, crashing), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ChildFailed("\n".join(map(str, self.crashes)))
            waiting.result()
        except TimeoutError as problem:
            tail = ""
            if self.agent is not None:
                tail = "; the agent's log ends:" + "".join(
                    f"\n    {line}" for line in log_tail(self.agent.log)
                )
            raise ChildFailed(f"{problem}{tail}") from None
        finally:
            for task in (waiting, crashing):
                task.cancel()
            await asyncio.gather(waiting, crashing, return_exceptions=True)

    # -- faults

    async def kill_agent(self) -> None:
        """SIGKILL the agent."""
        await self._agent_child().kill()

    async def start_agent(self) -> None:
        """Start the agent again, with the same configuration and port."""
        await self._agent_child().start()

    async def kill_pool(self, zone: str) -> None:
        """SIGKILL a zone's pool; its containers run on."""
        await self.zones[zone].kill_pool()

    async def start_pool(self, zone: str) -> None:
        """Start a zone's pool again."""
        await self.zones[zone].start_pool()

    async def kill_zone(self, zone: str) -> None:
        """Cut a zone's power: containerd, pool and containers at once."""
        left = await self.zones[zone].kill()
        if left:
            log.warning("zone_not_fully_dark", zone=zone, left=left)

    async def restore_zone(self, zone: str) -> None:
        """A zone's power is back."""
        await self.zones[zone].restore(self._images, pool=self._want_pools)

    def pause_apiserver(self) -> None:
        """Stop the API server's process: connections hang, as on a broken network."""
        self.control_plane.children["kube-apiserver"].signal(signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        """Let the API server go on."""
        self.control_plane.children["kube-apiserver"].signal(signal.SIGCONT)

    async def kill_apiserver(self) -> None:
        """SIGKILL the API server: connections are refused."""
        await self.control_plane.children["kube-apiserver"].kill()

    async def start_apiserver(self) -> None:
        """Start the API server again, on its old port, and wait until it is ready."""
        await self.control_plane.children["kube-apiserver"].start()
        await self.control_plane.ready()

    def _agent_child(self) -> Child:
        if self.agent is None:
            raise RuntimeError("this cluster runs without an agent")
        return self.agent

    def _started(self, child: Child) -> None:
        self.state.add_process(child.name, child.pid)

    def _crashed(self, crash: Crash) -> None:
        self.crashes.append(crash)
        self._report(str(crash))
        self.failed.set()


def refuse_without_privileges() -> None:
    """Raise Refused with all that keeps containerd from running here."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root (run it with sudo)")
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems and not Path("/sys/module/overlay").exists():
        missing.append("the overlay filesystem in the kernel")
    if not any(Path("/sys/fs/cgroup").iterdir()):
        missing.append("mounted control groups in /sys/fs/cgroup")
    if missing:
        raise Refused(
            f"containerd cannot run here without {' and '.join(missing)}; "
            "`vknode dev --runtime sim` needs none of it"
        )
