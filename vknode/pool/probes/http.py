"""httpGet: probes and hooks over HTTP and HTTPS.

As a kubelet (pkg/probe/http, pkg/kubelet/lifecycle/handlers.go): certificates are not
verified, no proxy is used, up to 10 redirects are followed on the same host, and one to
another host is a success with a warning. HTTP/2 is not offered.
"""

from __future__ import annotations

import asyncio
import functools
import ssl

from vknode.pool.probes import gowords
from vknode.pool.probes.exchange import Broken, NoConnection, Resolver, exchange
from vknode.pool.probes.http_request import BadRequest, Request, Url, redirected, url_of
from vknode.pool.probes.http_talk import BadResponse, HttpTalk
from vknode.pool.runtimes.facts import ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_LATE = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
_LATE_SHAKING = "context deadline exceeded"  # with TLS
_LATE_BODY = "context deadline exceeded (Client.Timeout or context cancellation while reading body)"


async def probe(
    resolver: Resolver, action: spec_pb2.Handler.HttpGet, ip: str, timeout_seconds: float
) -> ProbeOutcome:
    """Asks once, redirects included within the timeout."""
    walk = _Walk(resolver, Request(action.headers, "probe"), url_of(action, ip))
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await walk.get()
    except TimeoutError:
        if walk.in_body:
            return ProbeOutcome(ProbeResult.ERROR, _LATE_BODY)
        late = _LATE if walk.asked else _LATE_SHAKING
        return ProbeOutcome(ProbeResult.FAILURE, f"Get {gowords.quote(walk.where)}: {late}")
    except GetFailed as failed:
        if failed.in_body or failed.ours:
            return ProbeOutcome(ProbeResult.ERROR, failed.why if failed.in_body else str(failed))
        return ProbeOutcome(ProbeResult.FAILURE, str(failed))
    body = response.body.decode(errors="replace")
    if 200 <= response.status < 300:
        return ProbeOutcome(ProbeResult.SUCCESS, body)
    if 300 <= response.status < 400:
        return ProbeOutcome(
            ProbeResult.WARNING, f"Probe terminated redirects, Response body: {body}"
        )
    # Never with the body: it may hold what the event's readers must not see.
    return ProbeOutcome(
        ProbeResult.FAILURE, f"HTTP probe failed with statuscode: {response.status}"
    )


async def hook(resolver: Resolver, action: spec_pb2.Handler.HttpGet, ip: str) -> None:
    """Any answer is a success, whatever its status. Where HTTPS is asked for and only HTTP
    is spoken, that is taken, without the Authorization header. A kubelet means to tell that
    in an event (LifecycleHTTPFallback), which its own filter of events drops (its object is
    no reference); so nobody sees one. Raises GetFailed."""
    url, request = url_of(action, ip), Request(action.headers, "lifecycle")
    try:
        await _Walk(resolver, request, url).get()
    except GetFailed as failed:
        if failed.in_body:
            return
        if "server gave HTTP response to HTTPS client" not in failed.why:
            raise
        first = failed
    else:
        return
    request.without("Authorization")
    plain = Url("http", url.host, url.port, url.target)
    try:
        await _Walk(resolver, request, plain).get()
    except GetFailed as failed:
        if not failed.in_body:
            raise first from None


class GetFailed(Exception):
    """Worded as Go's url.Error. `why` is the text without the URL; `in_body`: an answer had
    come; `ours`: it says nothing of the other side."""

    def __init__(
        self, text: str, why: str = "", *, in_body: bool = False, ours: bool = False
    ) -> None:
        super().__init__(text)
        self.why = why
        self.in_body = in_body
        self.ours = ours


class _Walk:
    """From one address to the next, as the answers say."""

    def __init__(self, resolver: Resolver, request: Request, url: Url) -> None:
        self.where = str(url)
        self._resolver = resolver
        self._request = request
        self._url = url
        self._talk: HttpTalk | None = None

    @property
    def asked(self) -> bool:
        return self._url.scheme == "http" or (self._talk is not None and self._talk.begun)

    @property
    def in_body(self) -> bool:
        return self._talk is not None and self._talk.status > 0 and not self._talk.done

    async def get(self) -> HttpTalk:
        """The last answer. Raises GetFailed."""
        first, came_from, relative = self._url.host, None, True
        for followed in range(_MOST_REDIRECTS):
            answer = await self._ask(came_from, relative)
            if answer.status not in _REDIRECTS or not answer.location:
                return answer
            try:
                there, relative = redirected(self._url, answer.location)
            except BadRequest as error:
                raise self._failed(str(error)) from None
            if there.host != first:
                return answer
            if followed == _MOST_REDIRECTS - 1:
                self.where = answer.location
                raise self._failed(f"stopped after {_MOST_REDIRECTS} redirects")
            came_from, self._url = self._url, there
            self.where = str(there)
        raise AssertionError("unreachable")

    async def _ask(self, came_from: Url | None, relative: bool) -> HttpTalk:
        self._talk = None
        tls = _unverified() if self._url.scheme == "https" else None
        try:
            host, port = self._url.address
            headers = self._request.headers(self._url, came_from, relative=relative)
            self._talk = HttpTalk(self._url.line_target, headers)
            await exchange(self._resolver, host, port, self._talk, tls)
        except (BadRequest, Broken) as error:
            raise self._failed(str(error)) from None
        except NoConnection as error:
            raise self._failed(str(error), ours=error.ours) from None
        except BadResponse as error:
            why = str(error)
            if not self.in_body and why != "EOF":
                why = f"net/http: HTTP/1.x transport connection broken: {why}"
            raise self._failed(why) from None
        except ssl.SSLError as error:
            raise self._failed(gowords.tls_error(error)) from None
        return self._talk

    def _failed(self, why: str, *, ours: bool = False) -> GetFailed:
        text = f"Get {gowords.quote(self.where)}: {why}"
        return GetFailed(text, why, in_body=self.in_body, ours=ours)


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Weak keys are no weaker than a certificate that nobody looks at.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.set_alpn_protocols(["http/1.1"])
    return context
