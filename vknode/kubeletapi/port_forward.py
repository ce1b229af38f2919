"""GET and POST /portForward/{namespace}/{pod}[/{uid}]

Source: getPortForward in k8s.io/kubernetes pkg/kubelet/server. An API server of 1.36 or newer
passes a client's WebSocket through: SPDY in the messages of a tunnel, as kubectl does it, or the
channels of older clients. Older API servers come with SPDY/3.1 itself.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog
from aiohttp import web

from vknode.kubeletapi.backend import PodBackend, PodView
from vknode.kubeletapi.byte_stream import WebSocketBytes
from vknode.kubeletapi.forward_channels import MAX_MESSAGE, PROTOCOLS, ChannelForwarder
from vknode.kubeletapi.forward_spdy import SpdyForwarder
from vknode.kubeletapi.negotiation import (
    listed,
    offered_protocols,
    refuse_no_text,
    refuse_protocols,
)
from vknode.kubeletapi.node_identity import find_pod
from vknode.kubeletapi.raw_connection import RawConnection
from vknode.kubeletapi.remote_session import Close, SessionLimits
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.spdy_server import SpdyServer
from vknode.kubeletapi.streams import ServerStopping, StreamLimitError, Streams, cancel_and_wait
from vknode.kubeletapi.websocket_wire import CODES
from vknode.streaming.channels import UNNAMED
from vknode.streaming.portforward import PROTOCOL, TUNNEL
from vknode.streaming.remotecommand import SPDY_UPGRADE

_log = structlog.get_logger()
_MOST_PORTS = 128  # a channel is one byte

Socket = web.WebSocketResponse[bool]


class PortForward:
    """Carries TCP connections into Pods."""

    def __init__(self, backend: PodBackend, streams: Streams, limits: SessionLimits) -> None:
        self._backend = backend
        self._streams = streams
        self._limits = limits

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for path in ("/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"):
            router.add_get(path, self._handle, allow_head=False)
            router.add_post(path, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info
        upgrade = request.headers.get("Upgrade", "").strip().lower()
        offered = offered_protocols(request)
        tunnel = TUNNEL in offered
        ports: Sequence[int] = ()
        if upgrade == "websocket" and not tunnel:
            try:
                ports = _ports(request)
            except ValueError as error:
                return plain_error(400, str(error))
        pod = find_pod(request, self._backend, path["namespace"], path["pod"])
        if pod is None:
            return plain_error(404, "pod does not exist")
        if path.get("uid") not in (None, pod.uid):
            return plain_error(404, "pod not found")
        if (refusal := refuse_no_text(request)) is not None:
            return refusal
        if upgrade == SPDY_UPGRADE.lower():
            versions = listed(request, "X-Stream-Protocol-Version")
            if versions and PROTOCOL not in versions:
                return refuse_protocols(versions, (PROTOCOL,))
            return await self._limited(self._serve_spdy(request, pod, bool(versions)))
        if upgrade != "websocket":
            return plain_error(400, "Upgrade request required")
        chosen = TUNNEL if tunnel else next((one for one in offered if one in PROTOCOLS), "")
        if offered and not chosen:
            return refuse_protocols(offered, (TUNNEL, *PROTOCOLS))
        return await self._limited(self._serve(request, pod, chosen, ports))

    async def _limited(
        self, serving: Coroutine[Any, Any, web.StreamResponse]
    ) -> web.StreamResponse:
        try:
            with self._streams.slot():
                return await serving
        except StreamLimitError as error:
            serving.close()
            return error.response()

    async def _serve_spdy(
        self, request: web.Request, pod: PodView, named: bool
    ) -> web.StreamResponse:
        connection = RawConnection(request)
        version = {"X-Stream-Protocol-Version": PROTOCOL} if named else {}
        try:
            response = await connection.open({"Upgrade": SPDY_UPGRADE, **version})
        except ConnectionResetError:
            return web.Response()  # nobody is there to see it
        server = SpdyServer(connection)
        try:
            why = await self._run(server.ping, SpdyForwarder(self._backend, pod, server), pod)
            if why is Close.STOPPING:
                with contextlib.suppress(ConnectionResetError):
                    await server.go_away()
        finally:
            connection.close()
        return response

    async def _serve(
        self, request: web.Request, pod: PodView, protocol: str, ports: Sequence[int]
    ) -> web.StreamResponse:
        socket: Socket = web.WebSocketResponse(
            protocols=(protocol,) if protocol else (),
            compress=False,
            max_msg_size=self._limits.max_message_bytes if protocol == TUNNEL else MAX_MESSAGE,
            decode_text=False,
        )
        await socket.prepare(request)
        forwarder: SpdyForwarder | ChannelForwarder
        if protocol == TUNNEL:
            forwarder = SpdyForwarder(self._backend, pod, SpdyServer(WebSocketBytes(socket)))
        else:
            framing = PROTOCOLS.get(protocol, UNNAMED)
            forwarder = ChannelForwarder(self._backend, pod, socket, ports, framing)
        why = await self._run(socket.ping, forwarder, pod)
        if why is not None:
            await socket.close(code=CODES[why])
        return socket

    async def _run(
        self,
        ping: Callable[[], Awaitable[None]],
        forwarder: SpdyForwarder | ChannelForwarder,
        pod: PodView,
    ) -> Close | None:
        """Why it is over; None: the client has gone."""
        try:
            await self._streams.run(self._while_there(ping, forwarder))
        except ServerStopping:
            return Close.STOPPING
        except ConnectionError as error:
            _log.debug("port_forward_client_gone", reason=str(error), pod=pod.name)
            return None
        except Exception:  # a fault of our own: the connection ends, and the client with it
            _log.exception("port_forward_failed", namespace=pod.namespace, pod=pod.name)
            return Close.FAULT
        return Close.DONE

    async def _while_there(
        self, ping: Callable[[], Awaitable[None]], forwarder: SpdyForwarder | ChannelForwarder
    ) -> None:
        """While forwarding waits for a Pod nothing is read: only a ping tells that the client
        has gone."""
        work = asyncio.create_task(forwarder.run())
        pings = asyncio.create_task(self._ping(ping))
        try:
            await asyncio.wait({work, pings}, return_when=asyncio.FIRST_COMPLETED)
            (work if work.done() else pings).result()
        finally:
            await cancel_and_wait(work, pings)

    async def _ping(self, ping: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._limits.ping_interval)
            await ping()


def _ports(request: web.Request) -> list[int]:
    """Of the channels. Raises ValueError with a kubelet's text."""
    given = request.query.getall("port", [])
    if not given:
        raise ValueError('query parameter "port" is required')
    ports = []
    for text in given:
        if not text:
            raise ValueError('query parameter "port" cannot be empty')
        for part in text.split(","):
            digits = part.lstrip("0")
            if not part.isascii() or not part.isdigit() or int(digits[:6] or 0) > 65535:
                raise ValueError(f'unable to parse "{text}" as a port')
            if not digits:
                raise ValueError(f'port "{text}" must be > 0')
            ports.append(int(digits))
    if len(ports) > _MOST_PORTS:
        raise ValueError(f"at most {_MOST_PORTS} ports can be forwarded at once")
    return ports
