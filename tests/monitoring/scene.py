"""An agent's real parts, without an API server and without pools, and what a scraper gets of them.

Everything that counts is the real thing; what would have made it count is played.
"""

from __future__ import annotations

import datetime
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.agent.fake_pool import FakePool
from vknode.agent.app import Agent
from vknode.agent.config import AgentConfig, KubeletConfig, PoolConfig, TLSFiles
from vknode.agent.events import EventRecorder
from vknode.agent.health import PoolState
from vknode.agent.leases import LeaseKeeper
from vknode.agent.links import Link
from vknode.agent.metric_sources import publish
from vknode.agent.node_objects import REASON_POOL_UNREACHABLE, decode_node
from vknode.agent.nodes import NodeController
from vknode.agent.pod_report import PodReport
from vknode.agent.references import References
from vknode.agent.refresh import Refresher
from vknode.agent.status_writer import StatusWriter
from vknode.agent.sync import PodSync
from vknode.compose.process import publish_kubelet_api
from vknode.kube.client import KubeClient
from vknode.kube.reflector import ReflectorStats
from vknode.kubeletapi import KubeletApi, KubeletApiSettings
from vknode.pool.client import WatchState

POOLS = ("az1", "az2")
CELLS = ("a", "b")
DAY = 86400.0
NOTHING: Any = None  # what no test here reaches
_KEY = ec.generate_private_key(ec.SECP256R1())


class Clock:
    """A clock that stands: how long it took to play a scene must not show."""

    def monotonic(self) -> float:
        return 1e6


class PoolCalls:
    """The seam of `PoolClient`, connected."""

    def __init__(self) -> None:
        self.connected = True
        self.watch_states = {"cells": WatchState(up=True), "sandboxes": WatchState(up=True)}


class Scene:
    """`text` is what `/metrics` serves; the attributes are the parts that count."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """`clock` must be what Leases and watches are measured with. Certificates expire in 90
        days of a clock that began at 0."""
        of_pools = (f"{what}-{pool}" for pool in POOLS for what in ("pool", "pool-ca"))
        self.clock = clock
        self.files = {name: folder / f"{name}.pem" for name in ("serving", "ca", *of_pools)}
        for name in self.files:
            self.certify(name, 90 * DAY)
        config = AgentConfig(
            file=folder / "agent.yaml",
            pools=tuple(
                PoolConfig(
                    name,
                    f"{name}.example:7443",
                    TLSFiles(
                        ca=self.files[f"pool-ca-{name}"],
                        cert=self.files[f"pool-{name}"],
                        key=folder / "k",
                    ),
                )
                for name in POOLS
            ),
            kubelet=KubeletConfig(
                serving_cert=self.files["serving"],
                serving_key=folder / "k",
                client_ca=self.files["ca"],
            ),
        )
        self.calls = {name: PoolCalls() for name in POOLS}
        self.links = [Link(name, partial(self._client_of, name)) for name in POOLS]
        self.agent = agent = Agent(config, link=lambda pool: self.links[POOLS.index(pool.name)])
        agent.ready = True
        agent.links = self.links
        self.metrics = agent.metrics
        self.client = client = KubeClient(NOTHING)
        self.leases = LeaseKeeper(client)
        self.events = EventRecorder(client)
        self.nodes = NodeController(client, config, self.links, self.leases, events=self.events)
        self.watches = {"pods": ReflectorStats(), "services": ReflectorStats()}
        report = PodReport(agent.store, agent.records, lambda node: None, self.metrics.timings)
        self.writer = StatusWriter(client, report)
        self.refresher = Refresher(client, References(client), lambda: (), limit=1)
        self.sync = PodSync(
            store=agent.store,
            records=agent.records,
            links=self.links,
            place=lambda node: None,
            steps=NOTHING,
            admitter=NOTHING,
            refresher=NOTHING,
            writer=self.writer,
            metrics=self.metrics,
            owner="vknode",
            losses=NOTHING,
            claims=NOTHING,
        )
        publish(
            self.metrics,
            client=client,
            store=agent.store,
            records=agent.records,
            links=self.links,
            nodes=self.nodes,
            leases=self.leases,
            sync=self.sync,
            refresher=self.refresher,
            writer=self.writer,
            events=self.events,
            watches=self.watches,
        )
        settings = KubeletApiSettings(self.files["serving"], folder / "k", self.files["ca"])
        self.api = KubeletApi(NOTHING, NOTHING, settings, NOTHING)
        publish_kubelet_api(self.metrics, self.api)
        for pool in POOLS:
            self.pool_state(pool, PoolState.REACHABLE)
            for cell in CELLS:
                self.node(pool, cell)
        self.a_minute()

    def _client_of(self, name: str, up: object, down: object) -> Any:
        return self.calls[name]

    def text(self) -> str:
        return self.metrics.text().decode()

    # -- what happens ----------------------------------------------------------------------

    def a_minute(self) -> None:
        """What a healthy agent with some work does in one."""
        self.leases.stats.renewals += 24
        self.heard()
        self.client.stats.requests["GET"] = self.client.stats.requests.get("GET", 0) + 10
        self.client.stats.requests["PATCH"] = self.client.stats.requests.get("PATCH", 0) + 20
        self.client.stats.errors[404] = self.client.stats.errors.get(404, 0) + 1
        self.writer.patches += 20
        self.writer.written += 20
        self.events.stats.created += 5
        self.api.counts.done["containerLogs", "200"] += 3
        self.api.counts.done["exec", "101"] += 1
        self.metrics.status_patch_seconds.observe(0.004)
        self.metrics.sync_seconds.labels("create").observe(0.02)
        for _ in range(3):
            self.a_start(0.4)

    def a_start(self, seconds: float) -> None:
        """A Pod was seen, and its Running written so much later."""
        at_once = ("seen", "sandbox_asked", "sandbox_accepted", "pool_asked", "images_ready")
        marks = dict.fromkeys((*at_once, "sandbox_ready", "container_started", "status_sent"), 0)
        self.metrics._started({**marks, "status_written": int(seconds * 1e9)})

    def heard(self) -> None:
        for stats in (*self.watches.values(), self.nodes.watch_stats):
            stats.last_heard = self.clock.monotonic()
            stats.events += 5
        for held in self.leases._leases.values():
            held.renewed = self.clock.monotonic() - 8

    def pool_state(self, pool: str, state: PoolState) -> None:
        self.nodes._health[pool].state = state

    def node(self, pool: str, cell: str, ready: str = "True", reason: str = "KubeletReady") -> None:
        """The API server has the Node like this."""
        name = f"{pool}-{cell}"
        self.nodes.upsert(node_object(self.agent.config.name, name, pool, cell, ready, reason))
        self.leases.add(name, f"uid-{name}")

    def lose_cells(self, pool: str, count: int) -> None:
        """The pool had so many more cells, and now has none, for long enough."""
        plan = self.nodes._plan
        cells = {cell.name: cell for cell in FakePool([f"x{n}" for n in range(count)], pool).cells}
        plan.update(pool, cells, 0.0)
        plan.update(pool, {}, -1e6)

    def pool_dies(self, pool: str) -> None:
        for state in self.calls[pool].watch_states.values():
            state.up = False
        self.pool_state(pool, PoolState.UNREACHABLE)
        for cell in CELLS:
            self.node(pool, cell, "False", REASON_POOL_UNREACHABLE)

    def certify(self, name: str, expires: float) -> None:
        """Writes a certificate; `expires` in seconds of the epoch."""
        write_certificate(self.files[name], expires)


def node_object(agent: str, name: str, pool: str, cell: str, ready: str, reason: str) -> Any:
    body = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(time.monotonic_ns()),
            "labels": {"vknode.dev/managed-by": agent, "vknode.dev/pool": pool},
            "annotations": {"vknode.dev/cell": cell},
        },
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": reason}]},
    }
    return decode_node(msgspec.Raw(json.dumps(body).encode()))


def write_certificate(path: Path, *expires: float) -> None:
    """Self-signed ones into one file; seconds of the epoch."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    pem = b""
    for end in expires:
        after = datetime.datetime.fromtimestamp(end, datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(_KEY.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(after - datetime.timedelta(days=365))
            .not_valid_after(after)
            .sign(_KEY, hashes.SHA256())
        )
        pem += certificate.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(pem)
