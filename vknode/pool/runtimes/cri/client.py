"""One connection to a CRI socket: typed stubs, and errors as the pool words them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc
import grpc.aio

from vknode.pool.runtimes.cri.wire import (
    containerd_events_pb2_grpc,
    cri_pb2_grpc,
)
from vknode.pool.runtimes.facts import Failure, RuntimeAway

Answer = TypeVar("Answer")

# A list of every container of a full cell with its labels stays well below.
_MAX_MESSAGE = 64 * 1024 * 1024


class NotFound(Exception):
    """The runtime knows no such sandbox, container or image."""


class Reserved(Exception):
    """The name (with its attempt) is taken by something that an earlier call made."""


def target(endpoint: str) -> str:
    """A gRPC target for a socket path or a unix:// URL. Raises ValueError."""
    path = endpoint.removeprefix("unix://").removeprefix("unix:")
    if not path.startswith("/"):
        raise ValueError(f"CRI endpoint {endpoint!r}: give a socket's absolute path or unix:///…")
    return f"unix:{path}"


class CriClient:
    """The stubs. `call` runs one of their calls and translates what goes wrong."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = grpc.aio.insecure_channel(
            target(endpoint),
            options=(
                ("grpc.max_receive_message_length", _MAX_MESSAGE),
                ("grpc.max_send_message_length", _MAX_MESSAGE),
                # Channels of several runtimes in one process must not share a socket,
                # and a socket that is back should be tried soon.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
            ),
        )
        self.runtime: cri_pb2_grpc.RuntimeServiceAsyncStub = cri_pb2_grpc.RuntimeServiceStub(
            self.channel
        )
        self.image: cri_pb2_grpc.ImageServiceAsyncStub = cri_pb2_grpc.ImageServiceStub(self.channel)
        self.containerd_events: containerd_events_pb2_grpc.EventsAsyncStub = (
            containerd_events_pb2_grpc.EventsStub(self.channel)
        )

    async def close(self) -> None:
        await self.channel.close()

    async def call(self, reason: str, pending: Awaitable[Answer]) -> Answer:
        """The answer. Raises NotFound, Reserved, RuntimeAway, or Failure with `reason`."""
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            raise translate(reason, error, self.endpoint) from None


def translate(reason: str, error: grpc.aio.AioRpcError, endpoint: str) -> Exception:
    """The pool's exception for a failed call."""
    text = error.details() or error.code().name
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return NotFound(text)
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return RuntimeAway(f"the container runtime at {endpoint} cannot be reached")
    if "is reserved" in text:
        return Reserved(text)
    if error.code() == grpc.StatusCode.CANCELLED or "server is not initialized yet" in text:
        return RuntimeAway(f"the container runtime at {endpoint} is not ready: {text}")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(
            reason, f"the container runtime at {endpoint} did not answer in time: {text}"
        )
    return Failure(reason, text)
