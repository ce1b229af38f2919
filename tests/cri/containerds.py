"""A private containerd for these tests: one zone of the development cluster, alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.clusters import ClusterThread
from vknode.devcluster import network
from vknode.devcluster.programs.cache import cache_root
from vknode.devcluster.state import Process, RunRecord, boot_id
from vknode.devcluster.sweep import sweep
from vknode.devcluster.zone import PoolOptions, Zone, prepare_images


class Containerd:
    """A running containerd. `socket` is its endpoint; `stop` and `start` cut and restore
    the power of containerd alone: shims and containers run on, as in a real restart."""

    def __init__(self, zone: Zone, images: Path, thread: ClusterThread) -> None:
        self.zone = zone
        self._images = images
        self._thread = thread

    @property
    def socket(self) -> Path:
        return self.zone.places.socket

    @property
    def pid(self) -> int:
        assert self.zone.containerd is not None
        return self.zone.containerd.pid

    def stop(self) -> None:
        assert self.zone.containerd is not None
        self._thread.run(self.zone.containerd.kill())

    def start(self) -> None:
        self._thread.run(self.zone.start_containerd(self._images))


@contextlib.contextmanager
def containerd(programs: dict[str, Path]) -> Iterator[Containerd]:
    """Raises AssertionError at the end where anything of it is left on the machine."""
    folder = Path(tempfile.mkdtemp(prefix="vkn-"))
    thread = ClusterThread()
    identity = os.urandom(3).hex()
    mark = f"vknode-test-{identity}"
    record = RunRecord(boot_id(), Process("test", os.getpid(), 0), [], [], mark)
    zone: Zone | None = None
    # Everything outside the folder is on record before it is made, and made inside the `try`.
    try:
        with network.reserving():
            block = network.choose_block(network.current_routes(programs["ip"]))
            net = network.plan(identity, ["z"], block)["z"]
            zone = Zone(
                "z",
                folder / "z",
                logs=folder,
                options=PoolOptions(runtime="cri"),
                programs=programs,
                network=net,
            )
            zone.folder.mkdir()
            record.zones.append(zone.record)
            network.make_bridge(programs["ip"], net)
        network.open_firewall(programs["iptables"], block, mark)
        images = thread.run(
            prepare_images(programs["busybox"], cache_root(os.environ).parent / "images")
        )
        made = Containerd(zone, images, thread)
        made.start()
        yield made
    finally:
        if zone is not None and zone.containerd is not None:
            thread.run(zone.containerd.kill())
        left = sweep(record, programs)
        thread.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, left
