"""Event loops that end without what a TLS peer has yet to say.

aiohttp closes a TLS connection that it gives up by a handshake: it says goodbye and waits for
the peer's. Nobody waits for that when a session is closed, so a loop may be closed before; the
connection is then found by the garbage collector, in the middle of another test, which fails.
Connections that nobody has closed at all are still found.
"""

from __future__ import annotations

import asyncio
from asyncio.selector_events import BaseSelectorEventLoop
from asyncio.sslproto import SSLProtocol, SSLProtocolState

_SAYING_GOODBYE = (SSLProtocolState.FLUSHING, SSLProtocolState.SHUTDOWN)
_close = BaseSelectorEventLoop.close


def install() -> None:
    """For all loops of asyncio's own from now on."""
    BaseSelectorEventLoop.close = _end_goodbyes_and_close  # type: ignore[method-assign, assignment]


def _end_goodbyes_and_close(loop: BaseSelectorEventLoop) -> None:
    if not loop.is_closed():
        transports = loop._transports.values()  # type: ignore[attr-defined]
        waiting = [one for one in list(transports) if _says_goodbye(one.get_protocol())]
        for transport in waiting:
            transport.abort()
        if waiting:
            loop.run_until_complete(asyncio.sleep(0))
    _close(loop)


def _says_goodbye(protocol: object) -> bool:
    if not isinstance(protocol, SSLProtocol):
        return False
    return protocol._state in _SAYING_GOODBYE  # type: ignore[attr-defined]  # asyncio's own
