"""Lets a request through if its user is known and the cluster allows what it asks for.

Texts and statuses are those of InstallAuthFilter in k8s.io/kubernetes pkg/kubelet/server (1.37):
401 for nobody, 403 with the attributes for somebody who may not, 500 where the API server gives
no answer. All come before any endpoint is looked at, so that nobody learns what exists.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from vknode.kubeletapi.attributes import Attributes, attributes
from vknode.kubeletapi.authentication import Authenticator
from vknode.kubeletapi.backend import PodBackend
from vknode.kubeletapi.identity import User
from vknode.kubeletapi.node_identity import pin_node, requested_node
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.reviews import Access, ReviewError, Reviews

_log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def require_access(
    backend: PodBackend, authenticator: Authenticator, reviews: Reviews | None
) -> Any:
    """The middleware. Without `reviews` everybody who is known may do anything."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        user = await authenticator.user(request)
        if user is None:
            refusal = plain_error(401, "Unauthorized")
            # Who shows nothing keeps no place that others need (`doorman`).
            refusal.force_close()
            return refusal
        node = requested_node(request, backend)
        pin_node(request, node)
        if reviews is not None:
            # A review without a name is one about all nodes.
            wanted = attributes(request.method, _routed(request), node or "")
            forbidden = await _refusal(reviews, user, wanted, request)
            if forbidden is not None:
                return forbidden
        return await handler(request)

    return middleware


async def _refusal(
    reviews: Reviews, user: User, wanted: Attributes, request: web.Request
) -> web.Response | None:
    for subresource in wanted.subresources:
        try:
            if await reviews.is_allowed(Access(user, wanted.verb, wanted.node, subresource)):
                return None
        except ReviewError:
            return plain_error(
                500,
                f"Authorization error (user={user.name}, verb={wanted.verb}, resource=nodes, "
                f"subresource={subresource})",
            )
    _log.info(
        "kubelet_api_forbidden",
        user=_shown(user.name),
        verb=wanted.verb,
        subresources=wanted.subresources,
        node=wanted.node,
        path=_shown(request.path),
    )
    return plain_error(
        403,
        f"Forbidden (user={user.name}, verb={wanted.verb}, resource=nodes, "
        f"subresource(s)=[{' '.join(wanted.subresources)}])\n",
    )


def _routed(request: web.Request) -> str:
    """The pattern of the endpoint that will answer, so that no spelling of a path is authorized
    as one thing and served as another; the path itself where nothing will."""
    resource = request.match_info.route.resource
    return request.path if resource is None else resource.canonical


def _shown(text: str) -> str:
    """On one line of a log, whatever a client puts into it."""
    return "".join(char if char.isprintable() else "?" for char in text[:256])
