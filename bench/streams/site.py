"""The cluster that is measured, and the ways into it."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any, Self

import aiohttp

from bench.streams import parts
from bench.streams.clients import Door, StreamBroken, forwarded, pull, push, run, trusting
from bench.streams.stub import LogStub
from vknode.devcluster.cluster import DevCluster
from vknode.pool.client import PoolClient
from vknode.pool.runtimes.base import ExecStreams
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.sessions import Sessions
from vknode.pool.runtimes.facts import ContainerRef
from vknode.pool.v1 import stream_pb2

IMAGE = "busybox:1.36"
_NAMESPACE = "default"
_DOWN, _UP = 7001, 7002


class Site:
    """A started cluster of one zone and one node. `prefix` tells its figures from others',
    `agent_pid` is the process that serves its kubelet API."""

    def __init__(self, cluster: DevCluster, folder: Path, prefix: str, agent_pid: int) -> None:
        self.prefix = prefix
        self._cluster = cluster
        self._folder = folder
        self._agent_pid = agent_pid
        self._ids: dict[str, tuple[str, str, str]] = {}  # by Pod: UID, container ID, address
        self._sessions: list[aiohttp.ClientSession] = []

    async def __aenter__(self) -> Self:
        plane = self._cluster.control_plane
        self._api = self._session(plane.authority.cert, plane.admin.cert, plane.admin.key)
        zone = self._cluster.zones["az1"]
        self._pool = PoolClient("az1", f"unix:{zone.pool_socket}")
        self._cri = CriClient(str(zone.places.socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()
        await self._cri.close()
        for session in self._sessions:
            await session.close()

    def _session(self, ca: Path, cert: Path, key: Path) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=trusting(ca, cert, key), limit=0)
        session = aiohttp.ClientSession(connector=connector)
        self._sessions.append(session)
        return session

    # --- Pods ---

    async def pod(self, name: str, script: str) -> Door:
        """A Pod that runs `script`, once it is Running."""
        await self._create(
            "pods",
            {
                "metadata": {"name": name},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "restartPolicy": "Never",
                    "containers": [
                        {"name": "main", "image": IMAGE, "command": ["sh", "-c", script]}
                    ],
                },
            },
        )
        pod = await self._running(name)
        (status,) = pod["status"]["containerStatuses"]
        container = status["containerID"].partition("://")[2]
        self._ids[name] = (pod["metadata"]["uid"], container, pod["status"]["podIP"])
        return Door(self._api, self._cluster.control_plane.url, _NAMESPACE, name)

    async def _running(self, name: str) -> dict[str, Any]:
        url = f"{self._cluster.control_plane.url}/api/v1/namespaces/{_NAMESPACE}/pods"
        query = {"watch": "1", "fieldSelector": f"metadata.name={name}"}
        async with asyncio.timeout(60), self._api.get(url, params=query) as events:
            async for line in events.content:
                pod: dict[str, Any] = json.loads(line)["object"]
                if pod["status"].get("phase") == "Running":
                    return pod
        raise StreamBroken(f"the watch of {name} ended")

    async def _create(self, what: str, item: dict[str, Any]) -> None:
        space = "" if what == "nodes" else f"namespaces/{_NAMESPACE}/"
        url = f"{self._cluster.control_plane.url}/api/v1/{space}{what}"
        async with self._api.post(url, json=item) as response:
            if response.status != 201:
                raise StreamBroken(f"POST {what}: {await response.text()}")

    async def _get(self, what: str) -> dict[str, Any]:
        space = "" if what.startswith("nodes") else f"namespaces/{_NAMESPACE}/"
        async with self._api.get(
            f"{self._cluster.control_plane.url}/api/v1/{space}{what}"
        ) as response:
            response.raise_for_status()
            found: dict[str, Any] = await response.json()
            return found

    # --- exec, ever nearer to the container ---

    async def kubelet_door(self, door: Door) -> Door:
        """The kubelet API without an API server before it, with its certificate."""
        node = (await self._get(f"pods/{door.pod}"))["spec"]["nodeName"]
        status = (await self._get(f"nodes/{node}"))["status"]
        port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        pki = self._cluster.control_plane.folder / "pki"
        client = pki / "apiserver-kubelet-client.crt", pki / "apiserver-kubelet-client.key"
        session = self._session(self._cluster.control_plane.authority.cert, *client)
        # The API server connects anew for each session; so does this.
        address = next(one["address"] for one in status["addresses"] if one["type"] == "InternalIP")
        return Door(session, f"https://{address}:{port}", door.namespace, door.pod, kubelet=True)

    async def pool_exec(self, pod: str) -> float:
        uid, _, _ = self._ids[pod]
        start = stream_pb2.ExecRequest.Start(
            uid=uid, container="main", command=[parts.TRUE], stdout=True
        )
        began = time.perf_counter()
        return await _to_the_end(await self._pool.exec(start), began)

    async def cri_exec(self, pod: str) -> float:
        uid, container, _ = self._ids[pod]
        ref = ContainerRef(uid, "main", 0, container)
        start = stream_pb2.ExecRequest.Start(command=[parts.TRUE], stdout=True)
        began = time.perf_counter()
        return await _to_the_end(await Sessions(self._cri).exec(ref, start), began)

    # --- port-forward ---

    async def forward(self, leg: str, count: int, rounds: int) -> dict[str, Any]:
        """MiB/s from and to a Pod: through kubectl, and straight to its address."""
        name = "peer"
        await self.pod(
            name,
            f"while :; do nc -l -p {_DOWN} -e head -c {count} /dev/zero; done & "
            f"while :; do nc -l -p {_UP} -e sh -c 'head -c {count} | wc -c'; done",
        )
        address = self._ids[name][2]
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, port, move in (("down", _DOWN, pull), ("up", _UP, push)):
                await self._listening(name, port)
                rates.setdefault(f"direct_{way}", []).append(await move(address, port, count))
                await self._listening(name, port)
                async with forwarded(
                    self._cluster.kubectl.program, self._cluster.kubeconfig, name, port
                ) as local:
                    rates.setdefault(way, []).append(await move("127.0.0.1", local, count))
        medians = {way: round(statistics.median(values), 1) for way, values in rates.items()}
        found: dict[str, Any] = dict(medians)
        for way in ("down", "up"):
            found[f"{way}_ratio"] = round(medians[way] / medians[f"direct_{way}"], 3)
            found[f"{way}_spread"] = [round(f(rates[way]), 1) for f in (min, max)]
        return {f"{self.prefix}{leg}": found}

    async def _listening(self, pod: str, port: int) -> None:
        """nc takes one connection, and is started anew."""
        ref = ContainerRef(self._ids[pod][0], "main", 0, self._ids[pod][1])
        start = stream_pb2.ExecRequest.Start(
            command=["sh", "-c", f"until grep -q ':{port:04X} 0.* 0A ' /proc/net/tcp*; do :; done"],
            stdout=True,
        )
        await _to_the_end(await Sessions(self._cri).exec(ref, start), 0.0)

    # --- logs ---

    async def logs(self, size: int, rounds: int, tally: parts.Tally) -> parts.Figures:
        text = parts.Text(size)
        file = self._folder / "whole.log"
        await asyncio.to_thread(text.write, file)
        door = await self.pod("logger", text.script("touch /tmp/done; sleep 3600"))
        await parts.go(door)
        wait = "until [ -e /tmp/done ]; do sleep 0.2; done; sleep 2"
        await run(door, "sh", "-c", wait)
        plane = self._cluster.control_plane
        serving = plane.authority.issue("log-stub", "log-stub", ips=["127.0.0.1"])
        stub = LogStub(file, (serving.cert, serving.key))
        port = await stub.start()
        try:
            await self._stub_pod(port)
            floor = Door(self._api, plane.url, _NAMESPACE, "stub")
            ways = {f"{self.prefix}stub": floor, f"{self.prefix}whole": door}
            return await parts.logs(ways, text, tally, rounds)
        finally:
            await stub.stop()

    async def _stub_pod(self, port: int) -> None:
        await self._create(
            "nodes",
            {
                "metadata": {"name": "stub"},
                "spec": {"unschedulable": True},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
                },
            },
        )
        spec = {"nodeName": "stub", "containers": [{"name": "main", "image": "none"}]}
        await self._create("pods", {"metadata": {"name": "stub"}, "spec": spec})
        url = f"{self._cluster.control_plane.url}/api/v1/namespaces/{_NAMESPACE}/pods/stub/status"
        body = json.dumps({"status": {"phase": "Running"}})
        headers = {"Content-Type": "application/merge-patch+json"}
        async with self._api.patch(url, data=body, headers=headers) as response:
            response.raise_for_status()

    # --- memory ---

    def agent_mib(self) -> float:
        """The agent's proportional share of memory (PSS)."""
        for line in Path(f"/proc/{self._agent_pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) / 1024, 1)
        raise StreamBroken("the kernel tells no Pss")


async def _to_the_end(streams: ExecStreams, began: float) -> float:
    """Seconds since `began`, at exit code 0."""
    async for _ in streams.receive():
        pass
    code = await streams.exit_code()
    took = time.perf_counter() - began
    await streams.close()
    if code != 0:
        raise StreamBroken(f"ended with {code}")
    return took
