"""grpc: what a service says of its own health (pkg/probe/grpc)."""

from __future__ import annotations

import asyncio
import random

from grpc_health.v1 import health_pb2
from h2.exceptions import ProtocolError

from vknode.pool.probes import gowords
from vknode.pool.probes.exchange import Broken, NoConnection, Resolver, exchange
from vknode.pool.probes.health_call import HealthCall, NotHttp2
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

# As grpc-go between two tries to connect (backoff.DefaultConfig), seconds.
_PAUSE, _GROWTH, _JITTER = 1.0, 1.6, 0.2
_NAMES = {v: k for k, v in health_pb2.HealthCheckResponse.ServingStatus.items()}


async def probe(
    resolver: Resolver, action: spec_pb2.Handler.Grpc, ip: str, timeout_seconds: float
) -> ProbeOutcome:
    """As grpc-go's client with WithBlock: a connection that fails is tried again until
    the timeout, and only then called a failure."""
    address = gowords.host_port(ip, action.port)
    within = gowords.duration(timeout_seconds)
    call = HealthCall(address, action.service, timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            pause = _PAUSE
            while True:
                try:
                    await exchange(resolver, ip, action.port, call)
                    break
                except NoConnection as error:
                    if error.ours:
                        return ProbeOutcome(ProbeResult.ERROR, str(error))
                except Broken as error:
                    if call.ready:
                        return _failed("Unavailable", f"error reading from server: {error}")
                except NotHttp2:
                    pass
                except ProtocolError as error:
                    return _failed("Internal", str(error))
                await asyncio.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))
                pause *= _GROWTH
                left = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                call = HealthCall(address, action.service, left)
    except TimeoutError:
        if call.ready:
            return ProbeOutcome(
                ProbeResult.FAILURE, f"timeout: health rpc did not complete within {within}"
            )
        return ProbeOutcome(
            ProbeResult.FAILURE,
            f"timeout: failed to connect service {gowords.quote(address)} within {within}: "
            "context deadline exceeded",
        )
    match call.code:
        case "OK":
            if call.serving == health_pb2.HealthCheckResponse.SERVING:
                return ProbeOutcome(ProbeResult.SUCCESS, "service healthy")
            name = _NAMES.get(call.serving, str(call.serving))
            return ProbeOutcome(ProbeResult.FAILURE, f'service unhealthy (responded with "{name}")')
        case "Unimplemented":
            return ProbeOutcome(
                ProbeResult.FAILURE,
                "error: this server does not implement the grpc health protocol "
                f"(grpc.health.v1.Health): {call.message}",
            )
        case "DeadlineExceeded":
            return ProbeOutcome(
                ProbeResult.FAILURE, f"timeout: health rpc did not complete within {within}"
            )
        case code:
            return _failed(code, call.message)


def _failed(code: str, message: str) -> ProbeOutcome:
    return ProbeOutcome(
        ProbeResult.FAILURE,
        f"error: health rpc probe failed: rpc error: code = {code} desc = {message}",
    )
