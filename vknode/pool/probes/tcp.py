"""tcpSocket: whether a connection can be opened (pkg/probe/tcp)."""

from __future__ import annotations

import asyncio

from vknode.pool.probes import gowords
from vknode.pool.probes.exchange import NoConnection, Resolver, open_and_close
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2


async def probe(
    resolver: Resolver, action: spec_pb2.Handler.TcpSocket, ip: str, timeout_seconds: float
) -> ProbeOutcome:
    host = action.host or ip
    try:
        async with asyncio.timeout(timeout_seconds):
            await open_and_close(resolver, host, action.port)
    except TimeoutError as error:
        text = gowords.dial_error(gowords.host_port(host, action.port), error)
        return ProbeOutcome(ProbeResult.FAILURE, text)
    except NoConnection as error:
        result = ProbeResult.ERROR if error.ours else ProbeResult.FAILURE
        return ProbeOutcome(result, str(error))
    return ProbeOutcome(ProbeResult.SUCCESS)
