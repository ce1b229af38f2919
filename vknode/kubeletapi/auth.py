"""Who may use the kubelet API: holders of a client certificate of our CA, by common name.

The API server is the only intended client. It authenticates with the certificate given by its
`--kubelet-client-certificate`; users were authorized by it before.
"""

import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import structlog
from aiohttp import web

from vknode.kubeletapi.responses import plain_error

_log = structlog.get_logger()
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def client_name(request: web.Request) -> str | None:
    """The common name of the verified client certificate; None if there is no certificate.

    A name that occurs more than once, or not at all, is the empty string, which nobody allows.
    """
    transport = request.transport
    tls: Any = transport.get_extra_info("ssl_object") if transport is not None else None
    if not isinstance(tls, ssl.SSLObject):
        return None
    certificate = tls.getpeercert()
    if not certificate:
        return None
    names: list[str] = []
    # The type stubs have one type for every field of the certificate.
    subject: Any = certificate.get("subject", ())
    for relative_name in subject:
        names += (value for key, value in relative_name if key == "commonName")
    return names[0] if len(names) == 1 else ""


def require_client(allowed: Collection[str]) -> Any:
    """A middleware: 401 without a certificate, 403 with one of another name."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = client_name(request)
        if name is None:
            return plain_error(401, "Unauthorized")
        if allowed and name not in allowed:
            _log.warning("kubelet_api_client_refused", client=name, path=request.path)
            verb = _VERBS.get(request.method, "")
            return plain_error(
                403, f"Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[proxy])"
            )
        return await handler(request)

    return middleware
