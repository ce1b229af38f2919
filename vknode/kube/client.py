"""The thin client of the hot paths: bytes out, bytes in, typed errors, a small retry policy.

Retry policy (`retry=True`, the default for everything but POST):

==========================  =======  ==========================================
what came                   POST     GET PUT PATCH DELETE
==========================  =======  ==========================================
429                         again    again (the server has not begun)
500 502 503 504             no       again
connection never made       again    again
connection lost midway      no       again (our writes can be replayed)
401                         once     once, with credentials looked up anew
any other status            no       no
==========================  =======  ==========================================

A POST that changes nothing (a review) may be declared `replayable` and is then treated as a GET.
Retry-After is honoured up to `MAX_RETRY_AFTER` seconds; a longer wait is the caller's business.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp
import msgspec
import structlog
from multidict import CIMultiDict
from yarl import URL

from vknode.kube.backoff import Backoff
from vknode.kube.connection import Connection
from vknode.kube.errors import ApiError, Forbidden, Unauthorized, Unreachable
from vknode.kube.models import Status, decode_status

log = structlog.get_logger()

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

MAX_ATTEMPTS = 5
MAX_RETRY_AFTER = 30.0
ERROR_BODY_BYTES = 64 * 1024
_RETRIABLE_STATUS = frozenset((500, 502, 503, 504))


@dataclass
class ClientStats:
    """Counters since start, for metrics and for tests that count requests."""

    requests: dict[str, int] = field(default_factory=dict)  # by method
    errors: dict[int, int] = field(default_factory=dict)  # by HTTP status; 0 is no answer
    retries: int = 0


class KubeClient:
    """Requests to one API server over one `Connection` (which the caller closes)."""

    def __init__(
        self,
        connection: Connection,
        *,
        user_agent: str = "vknode",
        make_backoff: Callable[[], Backoff] = lambda: Backoff(base=0.1, maximum=5.0),
    ) -> None:
        self.connection = connection
        self.stats = ClientStats()
        self._make_backoff = make_backoff
        self._headers = {
            "User-Agent": user_agent,
            "Accept": JSON,
            # The server is near or the link is fast; compressing lists costs it more than it saves.
            "Accept-Encoding": "identity",
        }

    # -- the verbs -------------------------------------------------------------------------

    async def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        return await self.request(
            "GET", path, query=query, impersonate=impersonate, timeout=timeout, retry=retry
        )

    async def create(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
        replayable: bool = False,
    ) -> bytes:
        """POST to a collection; `is_already_exists` on the error tells a replay."""
        return await self.request(
            "POST",
            path,
            body=body,
            impersonate=impersonate,
            timeout=timeout,
            retry=retry,
            replayable=replayable,
        )

    async def put(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        return await self.request(
            "PUT", path, body=body, impersonate=impersonate, timeout=timeout, retry=retry
        )

    async def patch(
        self,
        path: str,
        body: bytes,
        *,
        content_type: str = MERGE_PATCH,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        return await self.request(
            "PATCH",
            path,
            body=body,
            content_type=content_type,
            query=query,
            impersonate=impersonate,
            timeout=timeout,
            retry=retry,
        )

    async def patch_status(
        self,
        path: str,
        body: bytes,
        *,
        content_type: str = STRATEGIC_PATCH,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        """PATCH of the `/status` subresource of the object at `path`; `body` is the whole patch.

        Put `metadata.uid` into it where the object may have been recreated under its name: the
        server answers 409 instead of writing to the wrong one.
        """
        return await self.request(
            "PATCH",
            f"{path}/status",
            body=body,
            content_type=content_type,
            impersonate=impersonate,
            timeout=timeout,
            retry=retry,
        )

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        grace_period_seconds: int | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        """DELETE; with `uid` only that very object is deleted (409 if it is another one)."""
        options: dict[str, object] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        return await self.request(
            "DELETE",
            path,
            body=msgspec.json.encode(options),
            impersonate=impersonate,
            timeout=timeout,
            retry=retry,
        )

    # -- the one way out -------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = JSON,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
        replayable: bool = False,
    ) -> bytes:
        """Sends one request and returns the response's body.

        `timeout` is for each attempt, in seconds. `impersonate` is a Node's name: the request
        acts as `system:node:NAME`. Raises `ApiError` (or its subtypes) and `Unreachable`.
        """
        backoff: Backoff | None = None
        replayable = replayable or method != "POST"
        renewed = False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            delay_at_least: float | None = None
            try:
                return await self._once(
                    method, path, body, content_type, query, impersonate, timeout
                )
            except Unauthorized:
                # A token rotated under us is replaced once; a second refusal is a real one.
                if renewed or not self.connection.invalidate():
                    raise
                renewed = True
                continue
            except ApiError as error:
                again = error.is_throttled or (replayable and error.status in _RETRIABLE_STATUS)
                if not retry or not again or attempt == MAX_ATTEMPTS:
                    raise
                if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER:
                    raise
                delay_at_least = error.retry_after
            except Unreachable as error:
                again = replayable or not error.sent
                if not retry or not again or attempt == MAX_ATTEMPTS:
                    raise
            backoff = backoff or self._make_backoff()
            self.stats.retries += 1
            await asyncio.sleep(backoff.next(at_least=delay_at_least))
        raise AssertionError("unreachable: the last attempt returns or raises")

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        impersonate: str | None = None,
        total: float | None = None,
        sock_read: float | None = None,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """GET whose body is read piece by piece (a watch). Never retried here.

        `total` bounds the whole response, `sock_read` the silence between two pieces, both in
        seconds; `impersonate` as in `request`. Error statuses raise before anything is yielded;
        while reading, turn aiohttp.ClientError and TimeoutError into your own decision.
        """
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=10.0, sock_read=sock_read)
        session = self.connection.streams
        async with await self._send(
            "GET", path, None, JSON, query, impersonate, timeout, session
        ) as response:
            yield response.content

    async def _once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str,
        query: Mapping[str, str] | None,
        impersonate: str | None,
        timeout: float,
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, timeout))
        try:
            response = await self._send(
                method, path, body, content_type, query, impersonate, limits
            )
            async with response:
                return await response.read()
        except (aiohttp.ClientError, OSError) as error:
            # TimeoutError is an OSError too.
            raise self._unreachable(method, path, error) from error

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str,
        query: Mapping[str, str] | None,
        impersonate: str | None,
        timeout: aiohttp.ClientTimeout,
        session: aiohttp.ClientSession | None = None,
    ) -> aiohttp.ClientResponse:
        connection = self.connection
        headers = CIMultiDict(self._headers)
        authorization = await connection.authorization()
        if authorization is not None:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Type"] = content_type
        if impersonate is not None:
            headers["Impersonate-User"] = f"system:node:{impersonate}"
            # The server adds system:authenticated itself; to send it would need a right of its own.
            headers["Impersonate-Group"] = "system:nodes"
        url = f"{connection.server}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        self.stats.requests[method] = self.stats.requests.get(method, 0) + 1
        try:
            response = await (session or connection.session).request(
                method,
                URL(url, encoded=True),
                data=body,
                headers=headers,
                timeout=timeout,
                server_hostname=connection.server_hostname,
                proxy=connection.proxy,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(method, path, error) from error
        if response.status < 300:
            return response
        async with response:
            raise await self._api_error(method, path, response)

    async def _api_error(
        self, method: str, path: str, response: aiohttp.ClientResponse
    ) -> ApiError:
        self.stats.errors[response.status] = self.stats.errors.get(response.status, 0) + 1
        try:
            raw = await response.content.read(ERROR_BODY_BYTES)
        except (aiohttp.ClientError, OSError):
            raw = b""
        try:
            status = decode_status(raw)
        except msgspec.DecodeError:
            # Not from the API server's handlers: a proxy's page, or plain text.
            status = Status(message=raw[:200].decode("utf-8", "replace").strip())
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if retry_after is None and status.details and status.details.retry_after_seconds > 0:
            retry_after = float(status.details.retry_after_seconds)
        code = response.status
        reason = status.reason or (response.reason or "").replace(" ", "")
        message = status.message or "no message"
        kind: type[ApiError] = ApiError
        if code == 401:
            kind = Unauthorized
            message = (
                f"{self.connection.server} refused the credentials ({self.connection.source}): "
                f"{message}; renew the certificate or token"
            )
        elif code == 403:
            kind = Forbidden
            message = (
                f"{message} ({self.connection.source}); grant it with the agent's RBAC manifests"
            )
        return kind(
            code,
            reason,
            message,
            retry_after=retry_after,
            causes=status.cause_reasons,
            request=f"{method} {path}",
        )

    def _unreachable(self, method: str, path: str, error: Exception) -> Unreachable:
        self.stats.errors[0] = self.stats.errors.get(0, 0) + 1
        server, source = self.connection.server, self.connection.source
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return Unreachable(
                f"the certificate of {server} cannot be verified ({source}): "
                f"{error.certificate_error}; check certificate-authority and the server's name",
                sent=False,
            )
        if isinstance(error, (aiohttp.ClientConnectorSSLError, ssl.SSLError)):
            return Unreachable(f"TLS with {server} failed ({source}): {error}", sent=False)
        if isinstance(error, aiohttp.ClientConnectorError):
            why = error.os_error.strerror or str(error.os_error)
            return Unreachable(
                f"cannot connect to {server} ({source}): {why}; "
                "check that the API server runs and the address is right",
                sent=False,
            )
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Unreachable(
                f"cannot connect to {server} ({source}): timed out; check address and firewall",
                sent=False,
            )
        if isinstance(error, TimeoutError):
            return Unreachable(f"{method} {path}: {server} did not answer in time")
        return Unreachable(
            f"{method} {path}: connection to {server} lost: {str(error) or type(error).__name__}"
        )


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header. The API server writes whole seconds, never a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None
