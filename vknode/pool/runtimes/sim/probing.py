"""What probes and hooks of a simulated container say.

All succeed where nothing else was said: the workload of a simulated pool is taken to be
well, and most commands need what its containers do not have. `behaviour.py` has the words
that change it; and the command `false` fails, as it does everywhere.
"""

from __future__ import annotations

import asyncio
import random
import time

from vknode.pool.runtimes.facts import Failure, ProbeOutcome, ProbeResult
from vknode.pool.runtimes.sim.behaviour import Behaviour
from vknode.pool.runtimes.sim.config import SimConfig
from vknode.pool.runtimes.sim.model import SimContainer
from vknode.pool.v1 import spec_pb2

_SUCCESS = ProbeOutcome(ProbeResult.SUCCESS)
_BY_CONFIGURATION = "a simulated failure by configuration"


class Probing:
    def __init__(self, config: SimConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng

    async def probe(
        self, container: SimContainer, handler: spec_pb2.Handler, timeout_seconds: float
    ) -> ProbeOutcome:
        behaviour = container.behaviour
        latency = self._latency("probe", behaviour.probe_latency)
        if latency > 0:
            await asyncio.sleep(min(latency, timeout_seconds))
        if latency >= timeout_seconds:
            return ProbeOutcome(ProbeResult.FAILURE, "simulated: context deadline exceeded")
        if _exit_code(behaviour, handler):
            return ProbeOutcome(ProbeResult.FAILURE)
        if self._fails("probe"):
            return ProbeOutcome(ProbeResult.FAILURE, _BY_CONFIGURATION)
        begins, ends = behaviour.probe_fail_after, behaviour.probe_fail_until
        if begins is None and ends is None and not behaviour.probe_error:
            return _SUCCESS
        if behaviour.probe_only is not None and behaviour.probe_only != target(handler):
            return _SUCCESS
        age = (time.time_ns() - container.started_at) / 1e9
        if age < (begins or 0.0) or (ends is not None and age >= ends):
            return _SUCCESS
        return ProbeOutcome(ProbeResult.FAILURE, behaviour.probe_error or "simulated: unhealthy")

    async def hook(
        self, container: SimContainer, handler: spec_pb2.Handler, timeout_seconds: float | None
    ) -> None:
        """Raises Failure."""
        behaviour = container.behaviour
        latency = self._latency("hook", behaviour.hook_latency)
        if latency > 0:
            limit = latency if timeout_seconds is None else timeout_seconds
            await asyncio.sleep(min(latency, limit))
        if timeout_seconds is not None and latency > timeout_seconds:
            raise Failure("DeadlineExceeded", "the simulated hook did not end in time")
        code = _exit_code(behaviour, handler)
        if code:
            raise Failure("HookFailed", f"simulated: exit code {code}")
        if behaviour.hook_error:
            raise Failure("HookFailed", behaviour.hook_error)
        if self._fails("hook"):
            raise Failure("HookFailed", _BY_CONFIGURATION)

    def _latency(self, what: str, fixed: float | None) -> float:
        return self._config.latency_of(what).draw(self._rng) if fixed is None else fixed

    def _fails(self, what: str) -> bool:
        share = self._config.failures.get(what, 0.0)
        return share > 0 and self._rng.random() < share


def _exit_code(behaviour: Behaviour, handler: spec_pb2.Handler) -> int:
    """Of a command; 0 for what is none."""
    if not handler.HasField("exec"):
        return 0
    return behaviour.exec_exit_code or int(list(handler.exec.command) == ["false"])


def target(handler: spec_pb2.Handler) -> str:
    """What `probe-only` is compared with: a path, a port, a service or a command."""
    match handler.WhichOneof("action"):
        case "http_get":
            return handler.http_get.path
        case "tcp_socket":
            return str(handler.tcp_socket.port)
        case "grpc":
            return handler.grpc.service
        case _:
            return " ".join(handler.exec.command)
