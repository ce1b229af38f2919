"""What the endpoints of exec and attach have in common: everything but what is asked for."""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from aiohttp import web

from vknode.kubeletapi.backend import AttachRequest, ExecRequest, ExecSession, PodBackend, PodView
from vknode.kubeletapi.negotiation import negotiate
from vknode.kubeletapi.node_identity import find_pod
from vknode.kubeletapi.remote_session import SessionLimits, serve_session
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.streams import StreamLimitError, Streams

Asked = TypeVar("Asked", ExecRequest, AttachRequest)


class SessionEndpoint(ABC, Generic[Asked]):
    """Serves sessions in running containers over a WebSocket or SPDY."""

    name: str
    """First part of the path."""
    trouble: str
    """Begins the text that a client gets where the backend fails."""

    def __init__(self, backend: PodBackend, streams: Streams, limits: SessionLimits) -> None:
        self._backend = backend
        self._streams = streams
        self._limits = limits

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for uid in ("", "/{uid}"):
            path = f"/{self.name}/{{namespace}}/{{pod}}{uid}/{{container}}"
            router.add_get(path, self._handle, allow_head=False)
            router.add_post(path, self._handle)

    @abstractmethod
    def parse(self, request: web.Request) -> Asked | str:
        """What the client asks for, or why it is no request."""

    @abstractmethod
    def fit(self, asked: Asked, pod: PodView) -> Asked | str:
        """The same for this container, or why it cannot be had."""

    @abstractmethod
    def open(self, pod: PodView, asked: Asked) -> AbstractAsyncContextManager[ExecSession]:
        """The backend's session."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info
        wanted = self.parse(request)
        if isinstance(wanted, str):
            return plain_error(400, wanted)
        pod = find_pod(request, self._backend, path["namespace"], path["pod"])
        if pod is None:
            return plain_error(404, "pod does not exist")
        view = pod.containers.get(wanted.container)
        if view is None or view.state != "running" or path.get("uid") not in (None, pod.uid):
            # A kubelet looks among what runs, so a stopped container is not found either.
            return plain_error(500, f'container not found ("{wanted.container}")')
        asked = self.fit(wanted, pod)
        if isinstance(asked, str):
            return plain_error(500, asked)
        wire = negotiate(request, asked, self._limits)
        if isinstance(wire, web.Response):
            return wire
        try:
            with self._streams.slot():
                session = self.open(pod, asked)
                return await serve_session(
                    request, wire, asked, session, self._streams, self.trouble
                )
        except StreamLimitError as error:
            return error.response()
