"""A real gRPC server whose health is what the asked service's name says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

_STATUS = health_pb2.HealthCheckResponse


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self) -> None:
        self.agents: list[str] = []

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        self.agents += [str(v) for k, v in context.invocation_metadata() or () if k == "user-agent"]
        match request.service:
            case "hang":
                await asyncio.sleep(1000)
            case "internal":
                await context.abort(grpc.StatusCode.INTERNAL, 'a "ü" %\n<b>')
            case "unknown":
                await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            case "headers":
                await context.send_initial_metadata([(f"h-{i}", "v" * 400) for i in range(60)])
            case "UNKNOWN" | "NOT_SERVING" | "SERVICE_UNKNOWN" as name:
                return _STATUS(status=_STATUS.ServingStatus.Value(name))
        return _STATUS(status=_STATUS.SERVING)


@contextlib.asynccontextmanager
async def health_server(*, implemented: bool = True) -> AsyncIterator[tuple[int, list[str]]]:
    """Its port, and the user agents that asked."""
    server = grpc.aio.server()
    servicer = _Health()
    if implemented:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, servicer.agents
    finally:
        await server.stop(0)
