"""One gRPC channel to a pool, with the calls that are on it.

A client whose certificates are renewed takes a new line for what comes next; sessions that are
open on the old one go on, and with the last of them the old one closes.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import grpc
import grpc.aio

from vknode.filemark import Mark, mark
from vknode.pool.endpoint import EndpointError, TlsFiles, parse_endpoint
from vknode.pool.tls import load
from vknode.pool.v1 import pool_pb2_grpc

MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes; what every pool takes

Call = TypeVar("Call")

# What a pool answers to a question about its health does not matter here: that it answers does.
_HEALTH = "/grpc.health.v1.Health/Check"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _options(server_name: str) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.max_send_message_length", MESSAGE_LIMIT),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        # While a ping for gRPC's own measuring is under way, none for keepalive is sent:
        # that one's timeout, a minute by default, would hold.
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


class Line:
    """Must be made and used in one event loop."""

    def __init__(self, endpoint: str, tls: TlsFiles | None) -> None:
        """Raises EndpointError for an unusable endpoint or TLS file."""
        address = parse_endpoint(endpoint)
        options = _options(tls.server_name if tls else "")
        # Before the files are read: what changes meanwhile is then seen as a change.
        self.mark: Mark = () if tls is None else mark(tls.paths)
        self.expires = ""
        if address.path is not None:
            self.channel = grpc.aio.insecure_channel(address.target, options=options)
        elif tls is None:
            raise EndpointError(f"{endpoint}: a pool over TCP needs mutual TLS; give its files")
        else:
            loaded = load(tls)
            self.expires = loaded.expires
            self.channel = grpc.aio.secure_channel(
                address.target,
                grpc.ssl_channel_credentials(loaded.ca, loaded.key, loaded.cert),
                options=options,
            )
        self.stub = pool_pb2_grpc.PoolStub(self.channel)
        self._calls = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    def on(self, call: Call) -> Call:
        """A call of `stub` that keeps the line open until it has ended."""
        self._calls += 1
        call.add_done_callback(self._ended)  # type: ignore[attr-defined]  # every call has it
        return call

    async def problem(self, timeout: float) -> str:
        """Why no connection can be made, at most after `timeout` seconds; empty where one is."""
        ask: Any = self.channel.unary_unary(_HEALTH)
        try:
            await ask(b"", timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return str(error.details()) if error.code() in _NO_ANSWER else ""
        return ""

    def retire(self) -> None:
        """Close as soon as nothing is on it."""
        self._retired = True
        self._close_if_empty()

    async def close(self) -> None:
        """Ends all calls on it."""
        await self.channel.close()

    def _ended(self, _call: Any) -> None:
        self._calls -= 1
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._retired and not self._calls and self._closing is None:
            self._closing = asyncio.create_task(self.channel.close())

    @property
    def closed(self) -> bool:
        """Retired and closed."""
        return self._closing is not None and self._closing.done()
