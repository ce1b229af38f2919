"""What can go wrong between us and the API server, as types.

=====================  ==========================================================
type                   meaning
=====================  ==========================================================
`ConnectionConfigError`  kubeconfig or in-cluster files are wrong; names file, field, fix
`Unreachable`          no HTTP answer: refused, timed out, TLS failed, cut off
`ApiError`             the API server answered with an error status
`Unauthorized`         401, `Forbidden` 403: an `ApiError` a person must fix
=====================  ==========================================================

No message ever carries a token, a key or a request body.
"""

from __future__ import annotations


class KubeError(Exception):
    """Base of everything `vknode.kube` raises on purpose."""


class ConnectionConfigError(KubeError):
    """The way to the API server is configured wrongly.

    `file` is the file at fault (or the environment for in-cluster use), `field` the key in
    it (may be empty), `problem` what is wrong, `fix` what to do.
    """

    def __init__(self, file: str, field: str, problem: str, fix: str) -> None:
        self.file = file
        self.field = field
        self.problem = problem
        self.fix = fix
        where = f"{file}: {field}" if field else file
        super().__init__(f"{where}: {problem}; {fix}")


class Unreachable(KubeError):
    """No HTTP response came. `sent` is False when the request surely never left."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        self.sent = sent
        super().__init__(message)


class ApiError(KubeError):
    """An HTTP error status, with the fields of the `metav1.Status` body where there is one.

    `retry_after` is in seconds: the Retry-After header, else `details.retryAfterSeconds`.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        causes: tuple[str, ...] = (),
        request: str = "",
    ) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.causes = causes
        self.request = request
        prefix = f"{request}: " if request else ""
        super().__init__(f"{prefix}{status} {reason}: {message}")

    @property
    def is_not_found(self) -> bool:
        return self.status == 404

    @property
    def is_already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_conflict(self) -> bool:
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_expired(self) -> bool:
        """410: the resourceVersion or continue token is too old; list again."""
        return self.status == 410 or self.reason in ("Expired", "Gone")

    @property
    def is_throttled(self) -> bool:
        return self.status == 429

    @property
    def is_transient(self) -> bool:
        """Worth another try of the same request without anybody changing anything."""
        return self.status == 429 or self.status >= 500


class Unauthorized(ApiError):
    """401: the credentials were refused."""


class Forbidden(ApiError):
    """403: the user is known but may not do this (RBAC, Node authorizer, admission)."""
