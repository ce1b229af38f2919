"""One connection, one question, one answer; no thread and at most one task for each.

What is said on it is a `Talk`, which knows no IO. A kubelet closes its probes' sockets
with SO_LINGER of a second; on an event loop that could hold up everybody, for Linux lets
`close` wait even on a non-blocking socket. Here an answered connection is closed as usual
and one that is given up is reset, so that neither waits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

from vknode.pool.probes import gowords

_PIECE = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
# Names are rare in probes; one that cannot be resolved must not hold up other work of ours.
_RESOLVERS = 4


class Talk(Protocol):
    """What a client says and what it makes of the answer. Bytes in, bytes out."""

    @property
    def done(self) -> bool: ...

    def begin(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes:
        """What to send now. May raise: the exchange ends with that."""
        ...

    def eof(self) -> None:
        """Raises where something is missing."""
        ...


class NoConnection(Exception):
    """Never connected. `ours` where it says nothing of the other side."""

    def __init__(self, text: str, *, ours: bool = False) -> None:
        super().__init__(text)
        self.ours = ours


class Broken(Exception):
    """Connected, then lost."""


class Resolver:
    """Names to addresses, aside of the event loop's own threads."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, host: str) -> Sequence[str]:
        """At least one. Raises NoConnection."""
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_RESOLVERS, "probe-names")
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise NoConnection(f"dial tcp: lookup {host}: no such host")
        return found


def _look_up(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


async def open_and_close(resolver: Resolver, host: str, port: int) -> None:
    """A TCP connection and nothing more. Raises NoConnection."""
    loop = asyncio.get_running_loop()
    problem: NoConnection | None = None
    for ip in await resolver.addresses(host):
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as plain:
                await loop.sock_connect(plain, (ip, port))
                return
        except OSError as error:
            problem = problem or _no_connection(ip, port, error)
    assert problem is not None
    raise problem


async def exchange(
    resolver: Resolver, host: str, port: int, talk: Talk, tls: ssl.SSLContext | None = None
) -> None:
    """Until `talk` is done. Raises NoConnection, Broken, ssl.SSLError, what `talk` raises.
    Safe to cancel."""
    loop = asyncio.get_running_loop()
    problem: NoConnection | None = None
    for ip in await resolver.addresses(host):
        connection = _Connection(talk, tls, host, loop.create_future())
        try:
            await loop.create_connection(lambda: connection, ip, port)  # noqa: B023
        except OSError as error:
            problem = problem or _no_connection(ip, port, error)
            continue
        try:
            await connection.over
        finally:
            connection.leave()
        return
    assert problem is not None
    raise problem


def _no_connection(ip: str, port: int, error: OSError) -> NoConnection:
    text = gowords.dial_error(gowords.host_port(ip, port), error)
    return NoConnection(text, ours=error.errno in gowords.OURS)


class _Connection(asyncio.Protocol):
    """TLS is spoken here and not by the event loop: the first bytes of an answer tell
    whether the other side speaks it at all."""

    def __init__(
        self, talk: Talk, tls: ssl.SSLContext | None, host: str, over: asyncio.Future[None]
    ) -> None:
        self.over = over
        self._talk = talk
        self._transport: asyncio.Transport | None = None
        self._shaken = tls is None
        self._heard = False
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def leave(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._talk.done:
            transport.close()
            return
        plain = transport.get_extra_info("socket")
        if plain is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are of no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        try:
            if self._shaken:
                self._transport.write(self._talk.begin())
            else:
                self._shake()
        except Exception as error:
            self._end(error)

    def data_received(self, data: bytes) -> None:
        if self.over.done():
            return
        try:
            if not self._shaken or self._uses_tls:
                self._encrypted(data)
            else:
                self._say(self._talk.feed(data))
        except Exception as error:
            self._end(error)
            return
        if self._talk.done:
            self._end(None)

    def eof_received(self) -> None:
        self._closed()

    def connection_lost(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if isinstance(error, OSError) and error.errno:
            self._end(Broken(f"{self._ends()}: read: {gowords.errno_text(error)}"))
        else:
            self._closed()

    @property
    def _uses_tls(self) -> bool:
        return hasattr(self, "_tls")

    def _closed(self) -> None:
        if self.over.done():
            return
        try:
            self._talk.eof()
        except Exception as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)

    def _ends(self) -> str:
        assert self._transport is not None
        names = [self._transport.get_extra_info(name) for name in ("sockname", "peername")]
        return "read tcp " + "->".join(gowords.host_port(n[0], n[1]) for n in names if n)

    # --- TLS ---

    def _encrypted(self, data: bytes) -> None:
        if not self._heard:
            self._heard = True
            if data.startswith(b"HTTP/"):
                raise Broken("http: server gave HTTP response to HTTPS client")
        self._incoming.write(data)
        if not self._shaken and not self._shake():
            return
        while True:
            try:
                plain = self._tls.read(_PIECE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                plain = b""
            if not plain:
                self._closed()
                return
            self._say(self._talk.feed(plain))
            if self._talk.done:
                return
        self._flush()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError:
            self._flush()  # the alert that tells the other side
            raise
        self._shaken = True
        self._say(self._talk.begin())
        return True

    def _say(self, data: bytes) -> None:
        assert self._transport is not None
        if not data:
            return
        if self._uses_tls:
            self._tls.write(data)
            self._flush()
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        assert self._transport is not None
        data = self._outgoing.read()
        if data:
            self._transport.write(data)
