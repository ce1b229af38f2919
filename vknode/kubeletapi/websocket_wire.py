"""The streams of exec and attach as channels of a WebSocket.

An end with a code of its own for each reason: 1000 when all was told, 1001 when the server stops,
1002 where the client broke the framing (1009: a message too large), 1011 for a fault of ours.
"""

import asyncio
from typing import NoReturn

from aiohttp import WSCloseCode, WSMsgType, web

from vknode.kubeletapi.backend import ExecSession
from vknode.kubeletapi.byte_stream import send_whole
from vknode.kubeletapi.remote_session import Asked, ClientGone, Close, SessionLimits, give
from vknode.streaming.channels import Channel, ChannelClosed, ChannelError, ChannelProtocol
from vknode.streaming.remotecommand import Outcome, ResizeParser, encode_outcome

CODES = {
    Close.DONE: WSCloseCode.OK,
    Close.STOPPING: WSCloseCode.GOING_AWAY,
    Close.FAULT: WSCloseCode.INTERNAL_ERROR,
}


def message_type(protocol: ChannelProtocol) -> WSMsgType:
    return WSMsgType.TEXT if protocol.text else WSMsgType.BINARY


class WebSocketWire:
    """One client, after the subprotocol was agreed on."""

    def __init__(
        self, request: web.Request, protocol: ChannelProtocol, wanted: Asked, limits: SessionLimits
    ) -> None:
        self._request = request
        self._protocol = protocol
        self._wanted = wanted
        self._ping_interval = limits.ping_interval
        self._stdin_open = wanted.stdin
        self._sizes = ResizeParser()
        self._socket: web.WebSocketResponse[bool] = web.WebSocketResponse(
            protocols=(protocol.name,) if protocol.name else (),
            compress=False,
            max_msg_size=limits.max_message_bytes,
            decode_text=False,
        )
        self.response: web.StreamResponse | None = None

    async def open(self) -> None:
        self.response = self._socket
        await self._socket.prepare(self._request)
        # An empty message says that the connection is there (some clients wait for it).
        if self._wanted.stdout:
            channel = Channel.STDOUT
        else:
            channel = Channel.STDERR if self._wanted.stderr else Channel.ERROR
        await self.send(channel, b"")

    async def send(self, channel: Channel, data: bytes) -> None:
        payload = self._protocol.encode(channel, data)
        await send_whole(self._socket.send_frame(payload, message_type(self._protocol)))

    async def feed(self, session: ExecSession) -> NoReturn:
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise ClientGone(message.type.name.lower())
            try:
                part = self._protocol.decode(message.data)
            except ChannelError as error:
                await self._socket.close(code=WSCloseCode.PROTOCOL_ERROR)
                raise ClientGone(str(error)) from None
            if part is None:
                continue
            if isinstance(part, ChannelClosed):
                if part.channel is Channel.STDIN and self._stdin_open:
                    self._stdin_open = False
                    await session.close_stdin()
            elif part.channel == Channel.STDIN and self._stdin_open:
                await give(session, part.data)
            elif part.channel == Channel.RESIZE and self._wanted.tty:
                for size in self._sizes.feed(part.data):
                    await session.resize(size.width, size.height)
            # All else is ignored, as a kubelet does.

    async def keep(self) -> NoReturn:
        """The client's answers are of no interest: while input waits for a command that does not
        read, nothing is read from the socket, and only writing tells that nobody is there."""
        while True:
            await asyncio.sleep(self._ping_interval)
            await self._socket.ping()

    async def tell(self, outcome: Outcome) -> None:
        data = encode_outcome(outcome, as_json=self._protocol.status_is_json)
        if data:
            await self.send(Channel.ERROR, data)

    async def close(self, why: Close) -> None:
        await self._socket.close(code=CODES[why])

    async def drop(self) -> None:
        """aiohttp ends the connection with the request."""
