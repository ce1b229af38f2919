"""One zone of the development cluster: its containerd, its network, its pool.

| state | containerd | pool    | containers | by          |
|-------|------------|---------|------------|-------------|
| up    | running    | running | running    | `start`     |
| dark  | killed     | killed  | killed     | `kill`      |
| up    | running    | running | as pool decides | `restore` |

`kill` is a power cut: every process of the zone ends at once and what lives in
memory (mounts, network namespaces, shim sockets) is gone; images and metadata
are on disk and come back. With runtime `sim` a zone is its pool process only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vknode.devcluster.containerd import (
    Places,
    lacks_sys_resource,
    major_version,
    render_config,
    write_mirrors,
)
from vknode.devcluster.imagelayout import Archive
from vknode.devcluster.images import IMAGE_NAMES, write_images
from vknode.devcluster.mounts import remove_tree
from vknode.devcluster.network import ZoneNetwork
from vknode.devcluster.process import Child, ChildFailed, Crash, log_tail
from vknode.devcluster.state import ZoneRecord
from vknode.devcluster.sweep import remove_host_ports, sweep_zone

#: Seconds until a containerd that does not serve counts as failed.
READY_WITHIN = 120.0


@dataclass(frozen=True)
class PoolOptions:
    """How a zone's pool is started."""

    runtime: str  # "cri" or "sim"
    cells: int = 2
    cell_capacity: str = "cpu=8,memory=16Gi,pods=110"
    region: str = "dev"
    sim_config: Path | None = None
    flags: tuple[str, ...] = ()  # more flags of `vknode pool`, as they are


class Zone:
    """A zone named `name` that keeps everything below `folder`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        logs: Path,
        options: PoolOptions,
        programs: Mapping[str, Path],
        network: ZoneNetwork | None = None,
        more_images: Sequence[Archive] = (),
        mirrors: Mapping[str, str] | None = None,
        on_crash: Callable[[Crash], None] | None = None,
        on_start: Callable[[Child], None] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.places = Places(folder)
        self.network = network
        self.options = options
        self.dark = False
        self._more_images = tuple(more_images)
        self._mirrors = dict(mirrors or {})
        self._programs = programs
        self._logs = logs
        self._on_crash = on_crash
        self._on_start = on_start
        self.containerd: Child | None = None
        self.pool = self._child("pool", self.pool_command())

    @property
    def pool_socket(self) -> Path:
        """Where the zone's pool listens."""
        return self.folder / "pool.sock"

    @property
    def cells(self) -> list[str]:
        """The names of the zone's cells, and so of its nodes: az1-a, az1-b …"""
        return [f"{self.name}-{letter}" for letter in letters(self.options.cells)]

    @property
    def record(self) -> ZoneRecord:
        """What a sweep must know of the zone."""
        if self.network is None:
            raise RuntimeError(f"zone {self.name} has nothing outside its folder")
        return ZoneRecord(self.name, str(self.folder), self.network.name, self.network.bridge)

    def pool_command(self) -> list[str]:
        """The argv of the zone's pool."""
        options = self.options
        command = [
            *(sys.executable, "-m", "vknode", "pool"),
            *("--runtime", options.runtime),
            *("--zone", self.name),
            *("--region", options.region),
            *("--cells", str(options.cells)),
            *("--cell-capacity", options.cell_capacity),
            *("--listen", f"unix:{self.pool_socket}"),
            *("--state-dir", str(self.folder / "pool")),
        ]
        if options.runtime == "cri":
            command += ["--runtime-endpoint", f"unix://{self.places.socket}"]
        elif options.sim_config is not None:
            command += ["--sim-config", str(options.sim_config)]
        return [*command, *options.flags]

    async def start_containerd(self, images: Path) -> None:
        """Start the zone's containerd and load the images into it (once: they stay).

        Raises ChildFailed with the log's end if it does not come up."""
        if self.network is None:
            return
        await asyncio.to_thread(self._write_config, self.network)
        self.containerd = self._child(
            "containerd", [str(self._programs["containerd"]), "--config", str(self.places.config)]
        )
        await self.containerd.start()
        await _listening(self.containerd, self.places.socket)
        marker = self.folder / "images-loaded"
        if not marker.exists():
            await self._load(images)
            marker.touch()

    async def start_pool(self) -> None:
        """Start the zone's pool and wait until it listens.

        Raises ChildFailed with the log's end if it does not."""
        self.pool_socket.unlink(missing_ok=True)
        await self.pool.start()
        await _listening(self.pool, self.pool_socket)

    async def kill_pool(self) -> None:
        """SIGKILL the pool; its containers run on."""
        await self.pool.kill()

    async def kill(self) -> list[str]:
        """Cut the zone's power; returns what could not be ended. See the table above."""
        self.dark = True
        ends = [self.pool.kill()]
        if self.containerd is not None:
            ends.append(self.containerd.kill())
        await asyncio.gather(*ends)
        if self.network is None:
            return []
        left = await asyncio.to_thread(sweep_zone, self.record)
        left += await asyncio.to_thread(remove_host_ports, self.record, self._programs)
        # What was on tmpfs in a real machine: bundles, namespaces, runc's state.
        for folder in (self.places.state, self.folder / "runc"):
            left += await asyncio.to_thread(remove_tree, folder)
        return left

    async def restore(self, images: Path, *, pool: bool = True) -> None:
        """Power is back: containerd and, if wanted, the pool start again."""
        await self.start_containerd(images)
        if pool:
            await self.start_pool()
        self.dark = False

    def _child(self, what: str, argv: Sequence[str | Path]) -> Child:
        environment = None
        if what == "containerd":
            # containerd looks its shim up on PATH: the one that belongs to it comes first.
            folders = {str(path.parent): None for path in self._programs.values()}
            path = ":".join([*folders, "/usr/sbin:/usr/bin:/sbin:/bin"])
            environment = {"PATH": path}
        return Child(
            f"{what} {self.name}",
            argv,
            log=self._logs / f"{what}-{self.name}.log",
            environment=environment,
            on_crash=self._on_crash,
            on_start=self._on_start,
        )

    def _write_config(self, network: ZoneNetwork) -> None:
        places = self.places
        for folder in (places.root, places.state, places.cni, places.leases):
            folder.mkdir(parents=True, exist_ok=True)
        (places.cni / "10-vknode.conflist").write_text(
            json.dumps(network.cni(places.leases), indent=1)
        )
        major = major_version(self._programs["containerd"])
        restrict = lacks_sys_resource(Path("/proc/self/status").read_text())
        write_mirrors(places, self._mirrors)
        places.config.write_text(
            render_config(
                places,
                self._programs,
                major,
                restrict_oom=restrict,
                mirrors=bool(self._mirrors),
            )
        )

    async def _load(self, images: Path) -> None:
        """Import the images and wait until the CRI plugin knows them: it learns of them by
        an event, and until then a Pod would find its image absent."""
        await self._ctr("images", "import", str(images))
        wanted = set(IMAGE_NAMES)
        for archive in self._more_images:
            await self._ctr("images", "import", str(archive.path))
            wanted.update(archive.names)
        deadline = time.monotonic() + READY_WITHIN
        while True:
            listed = await self._ctr("images", "list")
            managed = {
                line.split()[0]
                for line in listed.splitlines()
                if "io.cri-containerd.image=managed" in line
            }
            if managed >= wanted:
                return
            assert self.containerd is not None
            _check_alive(self.containerd, deadline)
            await asyncio.sleep(0.02)

    async def _ctr(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            self._programs["ctr"],
            f"--address={self.places.socket}",
            "--namespace=k8s.io",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise ChildFailed(
                f"zone {self.name}: ctr {' '.join(arguments)}: {err.decode().strip()}"
            )
        return out.decode()


async def _listening(child: Child, socket: Path) -> None:
    """Wait until a connection to the child's socket is taken. Raises ChildFailed."""
    deadline = time.monotonic() + READY_WITHIN
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(socket)
        except OSError:
            _check_alive(child, deadline)
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return


def _check_alive(child: Child, deadline: float) -> None:
    if child.running and time.monotonic() < deadline:
        return
    tail = "".join(f"\n    {line}" for line in log_tail(child.log))
    what = "did not listen in time" if child.running else "ended at its start"
    raise ChildFailed(f"{child.name} {what}; its log {child.log}:{tail}")


def letters(count: int) -> list[str]:
    """a, b … z, aa, ab …: the ends of cell names."""
    names = []
    for number in range(count):
        name = ""
        number += 1
        while number:
            number, rest = divmod(number - 1, 26)
            name = chr(ord("a") + rest) + name
        names.append(name)
    return names


async def prepare_images(busybox: Path, cache: Path) -> Path:
    """The tar file of all images, made once and kept in `cache`."""
    return await asyncio.to_thread(write_images, busybox, cache)
