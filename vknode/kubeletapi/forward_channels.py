"""Port-forward over the channels of a WebSocket: one connection for each port that was named.

Source: `k8s.io/cri-streaming` (portforward/websocket.go). Channel 2i carries the data of the i-th
port, channel 2i+1 its errors; the first message on each is the port, u16 little-endian. A channel
cannot be closed: the socket is, once all connections have ended.
"""

import asyncio
from collections.abc import Sequence

from aiohttp import WSMsgType, web

from vknode.kubeletapi.backend import BackendError, PodBackend, PodView
from vknode.kubeletapi.byte_stream import send_whole
from vknode.kubeletapi.forwarding import forward, trouble
from vknode.kubeletapi.streams import cancel_and_wait
from vknode.kubeletapi.websocket_wire import message_type
from vknode.streaming.channels import V4, V4_BASE64, ChannelData, ChannelError, ChannelProtocol

PROTOCOLS = {one.name: one for one in (V4, V4_BASE64)}
# Bytes of a message: one for each port may wait.
MAX_MESSAGE = 1024 * 1024


class ChannelForwarder:
    """All forwarded connections of one client."""

    def __init__(
        self,
        backend: PodBackend,
        pod: PodView,
        socket: web.WebSocketResponse[bool],
        ports: Sequence[int],
        protocol: ChannelProtocol,
    ) -> None:
        self._backend = backend
        self._pod = pod
        self._socket = socket
        self._ports = ports
        self._protocol = protocol
        # What the client sends; empty: nothing more.
        self._queues: list[asyncio.Queue[bytes]] = [asyncio.Queue(1) for _ in ports]
        self._open = set(range(len(ports)))

    async def run(self) -> None:
        """Until every connection has ended, or the client has gone."""
        for index, port in enumerate(self._ports):
            for channel in (2 * index, 2 * index + 1):
                await self._send(channel, port.to_bytes(2, "little"))
        reader = asyncio.create_task(self._read())
        forwards = asyncio.create_task(self._forward_all())
        try:
            await asyncio.wait({reader, forwards}, return_when=asyncio.FIRST_COMPLETED)
            (forwards if forwards.done() else reader).result()
        finally:
            await cancel_and_wait(reader, forwards)

    async def _forward_all(self) -> None:
        tasks = [asyncio.create_task(self._forward(i)) for i in range(len(self._ports))]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)

    async def _forward(self, index: int) -> None:
        port, queue = self._ports[index], self._queues[index]

        async def write(data: bytes) -> None:
            await self._send(2 * index, data)

        async def close_write() -> None:
            # The only way to say that no more comes: the connection is over.
            await queue.put(b"")

        try:
            await forward(self._backend, self._pod, port, queue.get, write, close_write)
        except BackendError as error:
            await self._send(2 * index + 1, trouble(self._pod, port, error).encode())
        finally:
            # The reader may just be waiting for room here.
            self._open.discard(index)
            while not queue.empty():
                queue.get_nowait()

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return
            channel, data = self._decode(message.data)
            index, kind = divmod(channel, 2)
            # As a kubelet: what comes for a channel of errors, or for none, is ignored.
            if kind == 0 and index in self._open and data:
                await self._queues[index].put(data)

    def _decode(self, data: bytes) -> tuple[int, bytes]:
        """Nothing for the first channel, where it makes no sense."""
        try:
            part = self._protocol.decode(data)
        except ChannelError:
            part = None
        return (part.channel, part.data) if isinstance(part, ChannelData) else (0, b"")

    async def _send(self, channel: int, data: bytes) -> None:
        payload = self._protocol.encode(channel, data)
        await send_whole(self._socket.send_frame(payload, message_type(self._protocol)))
