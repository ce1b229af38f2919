"""Connections of aiohttp's server that shall have no further request."""

from __future__ import annotations

from aiohttp import web


def let_go(connection: web.RequestHandler) -> None:
    """Ends it as soon as what runs on it has ended: at once where nothing does."""
    if connection._current_request is None:
        connection.force_close()
    elif connection._payload_parser is None and not connection._upgraded:
        connection.close()  # after this request; of an idle one it would close nothing
    # A session, or one that is about to be: it ends its connection itself. Closed, the handler
    # would take nothing more from its client.
