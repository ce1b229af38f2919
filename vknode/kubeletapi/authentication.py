"""Finds out who makes a request: a client certificate, else a token. Nobody is anonymous.

As a kubelet with anonymous authentication off: the first that is good counts, one that is bad does
not spoil the next, and where none is good the answer is 401 without a word why.
"""

import ssl
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import web

from vknode.kubeletapi.identity import (
    BadCredentialsError,
    User,
    authenticated,
    bearer_token,
    protocol_token,
    user_of_certificate,
)
from vknode.kubeletapi.negotiation import listed
from vknode.kubeletapi.reviews import ReviewError, Reviews

_log = structlog.get_logger()


class Authenticator:
    """`tokens`: whether bearer tokens are taken at all."""

    def __init__(self, reviews: Reviews, *, tokens: bool) -> None:
        self._reviews = reviews
        self._tokens = tokens

    async def user(self, request: web.Request) -> User | None:
        """None: nobody that we know."""
        der = client_certificate(request)
        if der is not None:
            try:
                return authenticated(user_of_certificate(der, datetime.now(UTC)))
            except BadCredentialsError as error:
                _log.debug("kubelet_api_bad_credentials", reason=str(error))
        if not self._tokens:
            return None
        token = bearer_token(request.headers.get("Authorization", ""))
        if token is not None and (user := await self._of(token, request)) is not None:
            return user
        if request.headers.get("Upgrade", "").strip().lower() != "websocket":
            return None
        try:
            token = protocol_token(listed(request, "Sec-WebSocket-Protocol"))
        except BadCredentialsError as error:
            _log.debug("kubelet_api_bad_credentials", reason=str(error))
            return None
        return None if token is None else await self._of(token, request)

    async def _of(self, token: str, request: web.Request) -> User | None:
        try:
            user = await self._reviews.token_user(token, request.remote or "")
        except ReviewError:
            return None  # told by who asked
        return None if user is None else authenticated(user)


def client_certificate(request: web.Request) -> bytes | None:
    """The certificate (DER) that the client showed, which TLS has verified against the client CA;
    None without one."""
    transport = request.transport
    tls: Any = transport.get_extra_info("ssl_object") if transport is not None else None
    if not isinstance(tls, ssl.SSLObject):
        return None
    return tls.getpeercert(binary_form=True)
