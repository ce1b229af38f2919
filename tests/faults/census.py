"""What runs in the pools, counted beside what the API server says should run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc.aio

from tests.support.fixtures import Running
from tests.support.kube import Kube, is_ready
from tests.support.until import until
from vknode.pool.v1 import pool_pb2, pool_pb2_grpc, status_pb2


class Census:
    """A view of all pools of a cluster, taken through the contract itself; remembers the
    container instances that ran when it was made."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.before = self.instances()

    def sandboxes(self) -> dict[str, status_pb2.Sandbox]:
        """All sandboxes of all pools by UID. Raises AssertionError if two pools hold one."""
        found: dict[str, status_pb2.Sandbox] = {}
        for zone in self.running.cluster.zones.values():
            for sandbox in asyncio.run(snapshot(f"unix:{zone.pool_socket}")):
                assert sandbox.uid not in found, f"{sandbox.uid} runs in two pools"
                found[sandbox.uid] = sandbox
        return found

    def instances(self) -> dict[str, list[tuple[str, int]]]:
        """Container IDs and restart counts by sandbox."""
        return {
            uid: [(c.container_id, c.restart_count) for c in s.containers]
            for uid, s in self.sandboxes().items()
        }

    def nodes_not_ready(self) -> set[str]:
        return {n["metadata"]["name"] for n in self.running.kube.items("nodes") if not is_ready(n)}

    def same_sandboxes(self, kube: Kube, *, timeout: float = 60) -> None:
        """Every sandbox of the namespace that ran before and whose Pod still exists is
        untouched; none is doubled; none without a Pod stays."""
        uids = {p["metadata"]["uid"] for p in kube.items("pods")}
        now = self.instances()
        for uid in uids & self.before.keys():
            assert now.get(uid) == self.before[uid], f"sandbox {uid} was restarted or lost"
        self.none_leaked(kube, timeout=timeout)

    def none_leaked(self, kube: Kube, *, timeout: float = 60) -> None:
        """Exactly the namespace's Pods have sandboxes."""

        def settled() -> bool:
            pods = {
                p["metadata"]["uid"]
                for p in kube.items("pods")
                if p["spec"].get("nodeName") and p["status"]["phase"] in ("Pending", "Running")
            }
            here = {u for u, s in self.sandboxes().items() if s.namespace == kube.namespace}
            return pods <= here and not here - {p["metadata"]["uid"] for p in kube.items("pods")}

        until(settled, "exactly one sandbox for each Pod", timeout=timeout)


async def snapshot(endpoint: str) -> Iterable[status_pb2.Sandbox]:
    """All sandboxes of one pool, by the first snapshot of a watch."""
    async with grpc.aio.insecure_channel(
        endpoint, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub: pool_pb2_grpc.PoolAsyncStub = pool_pb2_grpc.PoolStub(channel)
        found: list[status_pb2.Sandbox] = []
        call = stub.WatchSandboxes(pool_pb2.WatchSandboxesRequest(), wait_for_ready=True)
        async for response in call:
            found += response.sandboxes
            if response.snapshot_end:
                break
        call.cancel()
        return found
