"""GET /containerLogs/{namespace}/{pod}/{container}"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

import structlog
from aiohttp import HttpVersion11, web

from vknode.kubeletapi.backend import BackendError, ContainerView, PodBackend, PodView
from vknode.kubeletapi.log_options import LogQueryError, parse_log_options
from vknode.kubeletapi.node_identity import find_pod
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.streams import STOPPING, ServerStopping, StreamLimitError, Streams

_log = structlog.get_logger()

_PULL_REASONS = {
    "ErrImagePull": "image can't be pulled",
    "ImagePullBackOff": "trying and failing to pull image",
}


class ContainerLogs:
    """Streams a container's log. Reading from the pool stops while the client does not read."""

    def __init__(self, backend: PodBackend, streams: Streams) -> None:
        self._backend = backend
        self._streams = streams

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get(
            "/containerLogs/{namespace}/{pod}/{container}", self._handle, allow_head=False
        )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info
        container = path["container"]
        query = {name: request.query.getall(name) for name in request.query}
        try:
            options = parse_log_options(container, query, datetime.now(UTC))
        except LogQueryError as error:
            return plain_error(error.status, str(error))
        pod = find_pod(request, self._backend, path["namespace"], path["pod"])
        if pod is None:
            return plain_error(404, f'pod "{path["pod"]}" does not exist')
        view = pod.containers.get(container)
        if view is None:
            return plain_error(404, f'container "{container}" not found in pod "{pod.name}"')
        if (reason := why_no_log(pod, view, previous=options.previous)) is not None:
            return plain_error(400, reason)
        answer = _LogAnswer(request, self._backend.open_logs(pod, options), options.limit_bytes)
        try:
            with self._streams.slot():
                return await self._streams.run(answer.send(), lambda: answer.leaving)
        except StreamLimitError as error:
            return error.response()
        except ServerStopping:
            if answer.response is None:
                return plain_error(503, STOPPING)
            return answer.cut(STOPPING)


class _LogAnswer:
    """One log on its way to a client. `response` is None until the log was found."""

    def __init__(
        self, request: web.Request, log: AsyncGenerator[bytes, None], limit: int | None
    ) -> None:
        self._request = request
        self._log = log
        self._left = limit
        self.response: web.StreamResponse | None = None
        self.leaving = False

    async def send(self) -> web.StreamResponse:
        async with aclosing(self._log):
            try:
                return await self._send()
            finally:
                self.leaving = True

    async def _send(self) -> web.StreamResponse:
        try:
            # Nothing is sent before the log is found: until then an error has its status.
            first = await anext(self._log, b"")
        except BackendError as error:
            return plain_error(400, str(error))
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        if self._request.version >= HttpVersion11:  # else the connection's end is the log's
            response.enable_chunked_encoding()
        await response.prepare(self._request)
        self.response = response
        try:
            await self._copy(response, first)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone
        except BackendError as error:
            return self.cut(str(error))
        return response

    async def _copy(self, response: web.StreamResponse, first: bytes) -> None:
        data: bytes | None = first
        while data is not None:
            if self._left is not None:
                data = data[: self._left]
                self._left -= len(data)
            if data:
                await response.write(data)
            if self._left == 0:
                return
            data = await anext(self._log, None)

    def cut(self, reason: str) -> web.StreamResponse:
        """Breaks the connection: a clean end would say that this was the whole log."""
        _log.warning("log_stream_cut", reason=reason, **dict(self._request.match_info))
        if self._request.transport is not None:
            self._request.transport.abort()
        assert self.response is not None
        return self.response


def why_no_log(pod: PodView, container: ContainerView, *, previous: bool) -> str | None:
    """The kubelet's words if the container has no such log, else None.

    Source: validateContainerLogStatus in k8s.io/kubernetes pkg/kubelet.
    """
    who = f'container "{container.name}" in pod "{pod.name}"'
    if container.state is None:
        return f"{who} is not available"
    if previous:
        if container.has_previous:
            return None
        return f"previous terminated {who} not found"
    if container.state == "running" or container.has_previous:
        return None
    if container.state == "terminated":
        return None if container.started else f"{who} is terminated"
    reason = _PULL_REASONS.get(container.waiting_reason, container.waiting_reason)
    return f"{who} is waiting to start: {reason}"
