"""What exec and attach have in common before their streams begin."""

from collections.abc import Mapping, Sequence

from aiohttp import web

from vknode.kubeletapi.identity import without_tokens
from vknode.kubeletapi.remote_session import Asked, SessionLimits, Wire
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.spdy_wire import SpdyWire, choose_version
from vknode.kubeletapi.websocket_wire import WebSocketWire
from vknode.streaming.channels import PROTOCOLS, choose_protocol
from vknode.streaming.remotecommand import SPDY_PROTOCOLS, SPDY_UPGRADE

_SUPPORTED = [protocol.name for protocol in PROTOCOLS]
_HANDSHAKE = (
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "X-Stream-Protocol-Version",
)


NO_STREAMS = "you must specify at least 1 of stdin, stdout, stderr"


def wanted_streams(query: Mapping[str, str]) -> tuple[bool, bool, bool, bool] | None:
    """stdin, stdout, stderr and whether with a terminal; None if nothing at all."""
    tty, stdin, stdout, stderr = (
        query.get(name) == "1" for name in ("tty", "input", "output", "error")
    )
    stderr = stderr and not tty  # a terminal has one output
    return (stdin, stdout, stderr, tty) if stdin or stdout or stderr else None


def negotiate(request: web.Request, wanted: Asked, limits: SessionLimits) -> Wire | web.Response:
    """What will carry the streams, or the refusal."""
    if (refusal := refuse_no_text(request)) is not None:
        return refusal
    upgrade = request.headers.get("Upgrade", "").strip().lower()
    if upgrade == SPDY_UPGRADE.lower():
        offered = listed(request, "X-Stream-Protocol-Version")
        version = choose_version(offered)
        if version is None:
            return refuse_protocols(offered, SPDY_PROTOCOLS)
        return SpdyWire(request, version, wanted, limits)
    if upgrade != "websocket":
        return plain_error(400, "Upgrade request required")
    offered = offered_protocols(request)
    protocol = choose_protocol(offered)
    if protocol is None:
        return refuse_protocols(offered, _SUPPORTED)
    return WebSocketWire(request, protocol, wanted, limits)


def refuse_no_text(request: web.Request) -> web.Response | None:
    """The refusal of a handshake with other bytes than ASCII, of which no key or name of a protocol
    has any: they can neither be answered nor shown."""
    for name in _HANDSHAKE:
        if not all(value.isascii() for value in request.headers.getall(name, [])):
            return plain_error(400, f"header {name} must be ASCII")
    return None


def listed(request: web.Request, header: str) -> list[str]:
    """The names in a header that may come several times, or have several, in their order."""
    values = request.headers.getall(header, [])
    names = (name.strip() for value in values for name in value.split(","))
    return [name for name in names if name]


def offered_protocols(request: web.Request) -> list[str]:
    """A client's WebSocket subprotocols, in its order, without a token that is given as one."""
    return without_tokens(listed(request, "Sec-WebSocket-Protocol"))


def refuse_protocols(offered: Sequence[str], supported: Sequence[str]) -> web.Response:
    return plain_error(
        403,
        f"requested protocol(s) are not supported: [{' '.join(offered)}]; "
        f"supports [{' '.join(supported)}]",
        {"X-Accepted-Stream-Protocol-Versions": ", ".join(supported)},
    )
