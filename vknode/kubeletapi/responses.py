"""Error answers in the form of a kubelet's: a status and plain text."""

from collections.abc import Mapping

from aiohttp import web


def plain_error(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The API server shows `text` to the user as the cause."""
    return web.Response(status=status, text=text, headers=headers)
