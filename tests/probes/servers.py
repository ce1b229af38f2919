"""A server that does what a script says, one list of steps for each connection:

    "read"          reads up to the empty line after a request's headers
    ["send", text]  {port} in it is the server's own
    ["fill", count] so many times the letter x
    "some"          reads whatever comes first
    "close"         as usual, with FIN (also at the end of the list)
    "reset"         with RST
    "hang"          nothing more, until the client goes
    "tls"           speaks TLS from here on (first step only)

The last list serves all further connections, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Step = str | Sequence[str]


def server_tls(folder: Path) -> ssl.SSLContext:
    """With a certificate that nobody trusts, long expired, for another name."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere")])
    start = datetime.datetime(2001, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


class ScriptedServer:
    """`requests` are the header blocks that were read, `port` where it listens."""

    def __init__(self, scripts: Sequence[Sequence[Step]], tls: ssl.SSLContext | None) -> None:
        self.requests: list[str] = []
        self.port = 0
        self.open = 0
        self._scripts = scripts
        self._tls = tls
        self._served = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self._served, len(self._scripts) - 1)]
        self._served += 1
        self.open += 1
        try:
            for step in script:
                await self._step(step, reader, writer)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def _step(
        self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        match step:
            case "read":
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            case "some":
                await reader.read(65536)
            case "hang":
                while await reader.read(65536):
                    pass
            case "reset":
                plain: Any = writer.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case "tls":
                assert self._tls is not None
                await writer.start_tls(self._tls)
            case "close":
                writer.close()
            case ["send", text]:
                writer.write(text.replace("{port}", str(self.port)).encode("latin-1"))
                await writer.drain()
            case ["fill", count]:
                writer.write(b"x" * int(count))
                await writer.drain()
            case _:
                raise ValueError(f"no such step: {step}")


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port whose connections are never made: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket())
        waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.asynccontextmanager
async def scripted(
    scripts: Sequence[Sequence[Step]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer(scripts, tls)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
