"""The kubelet API's `Reviewer`: the API server, asked in the agent's own name.

TokenReview of authentication.k8s.io/v1 without audiences, so that a token must be meant for the
API server, and SubjectAccessReview of authorization.k8s.io/v1: what a kubelet asks. Both change
nothing and are sent again where an answer was lost.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from vknode.kube.client import KubeClient
from vknode.kube.errors import ApiError, KubeError
from vknode.kubeletapi import Access, ReviewError, User

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
# Seconds for one try; the kubelet API bounds all tries together.
TIMEOUT = 10.0


class _UserInfo(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _TokenStatus(msgspec.Struct):
    authenticated: bool = False
    user: _UserInfo = msgspec.field(default_factory=_UserInfo)


class _TokenReview(msgspec.Struct):
    status: _TokenStatus = msgspec.field(default_factory=_TokenStatus)


class _AccessStatus(msgspec.Struct):
    allowed: bool = False
    denied: bool = False


class _AccessReview(msgspec.Struct):
    status: _AccessStatus = msgspec.field(default_factory=_AccessStatus)


_decode_token = msgspec.json.Decoder(_TokenReview).decode
_decode_access = msgspec.json.Decoder(_AccessReview).decode


class ApiReviewer:
    """Needs `create` on tokenreviews and subjectaccessreviews."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def token_user(self, token: str) -> User | None:
        body = msgspec.json.encode(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token},
            }
        )
        try:
            answer = await self._client.create(
                TOKEN_REVIEWS, body, timeout=TIMEOUT, replayable=True
            )
            status = _decode_token(answer).status
        except (KubeError, msgspec.MsgspecError) as error:
            _fail(error, hide=token)
        if not status.authenticated or not status.user.username:
            return None
        user = status.user
        extra = sorted((user.extra or {}).items())
        return User(
            name=user.username,
            uid=user.uid,
            groups=tuple(user.groups or ()),
            extra=tuple((key, tuple(values)) for key, values in extra),
        )

    async def is_allowed(self, access: Access) -> bool:
        body = access_review(access)
        try:
            answer = await self._client.create(
                ACCESS_REVIEWS, body, timeout=TIMEOUT, replayable=True
            )
            status = _decode_access(answer).status
        except (KubeError, msgspec.MsgspecError) as error:
            _fail(error)
        if status.allowed and status.denied:
            raise ReviewError("the API server both allowed and denied an access")
        return status.allowed


def access_review(access: Access) -> bytes:
    """The request's body."""
    user = access.user
    spec: dict[str, object] = {
        "user": user.name,
        "resourceAttributes": {
            "verb": access.verb,
            "version": "v1",
            "resource": "nodes",
            "subresource": access.subresource,
            "name": access.node,
        },
    }
    if user.uid:
        spec["uid"] = user.uid
    if user.groups:
        spec["groups"] = user.groups
    if user.extra:
        spec["extra"] = dict(user.extra)
    return msgspec.json.encode(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": spec,
        }
    )


def _fail(error: Exception, hide: str | None = None) -> NoReturn:
    """Whatever a server, or a proxy before it, writes into its error: no token is passed on."""
    text = f"the API server's answer is no review ({error})"
    if isinstance(error, ApiError):
        text = f"the API server refused a review: {error}"
    elif isinstance(error, KubeError):
        text = str(error)
    if hide is not None and hide in text:
        text = "the API server refused a review (its message holds what it was sent)"
    raise ReviewError(text) from None
