"""One forwarded TCP connection: two directions that close apart from each other."""

import asyncio
from collections.abc import Awaitable, Callable

from vknode.kubeletapi.backend import BackendError, ForwardedConnection, PodBackend, PodView
from vknode.kubeletapi.streams import cancel_and_wait

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


def trouble(pod: PodView, port: int, error: BackendError) -> str:
    """What a kubelet's error stream says."""
    return f"error forwarding port {port} to pod {pod.name}, uid {pod.uid}: {error}"


async def forward(
    backend: PodBackend,
    pod: PodView,
    port: int,
    read: Read,
    write: Write,
    close_write: Callable[[], Awaitable[None]],
) -> None:
    """Until both directions have ended. `read` gives what the client sends, empty at its end.

    Raises `BackendError`, and whatever the client's side raises.
    """
    async with backend.open_port_forward(pod, port) as connection:
        inward = asyncio.create_task(_inward(connection, read))
        outward = asyncio.create_task(_outward(connection, write, close_write))
        try:
            await asyncio.gather(inward, outward)
        finally:
            await cancel_and_wait(inward, outward)


async def _inward(connection: ForwardedConnection, read: Read) -> None:
    while data := await read():
        await connection.write(data)
    await connection.close_write()


async def _outward(
    connection: ForwardedConnection, write: Write, close_write: Callable[[], Awaitable[None]]
) -> None:
    async for data in connection:
        await write(data)
    await close_write()
