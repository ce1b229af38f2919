"""GET and POST /exec/{namespace}/{pod}[/{uid}]/{container}

Source: getExec in k8s.io/kubernetes pkg/kubelet/server and `k8s.io/cri-streaming`. An API server
of 1.36 or newer passes a client's WebSocket through, because our nodes declare
`ExtendWebSocketsToKubelet`; an older one, or an older client, comes with SPDY/3.1.
"""

from contextlib import AbstractAsyncContextManager

from aiohttp import web

from vknode.kubeletapi.backend import ExecRequest, ExecSession, PodView
from vknode.kubeletapi.negotiation import NO_STREAMS, wanted_streams
from vknode.kubeletapi.session_endpoint import SessionEndpoint


class Exec(SessionEndpoint[ExecRequest]):
    """Runs a command in a container."""

    name = "exec"
    trouble = "error executing command in container"

    def parse(self, request: web.Request) -> ExecRequest | str:
        streams = wanted_streams(request.query)
        if streams is None:
            return NO_STREAMS
        command = tuple(request.query.getall("command", []))
        if not command:
            return "you must specify at least one command for the container"
        return ExecRequest(request.match_info["container"], command, *streams)

    def fit(self, asked: ExecRequest, pod: PodView) -> ExecRequest:
        return asked

    def open(self, pod: PodView, asked: ExecRequest) -> AbstractAsyncContextManager[ExecSession]:
        return self._backend.open_exec(pod, asked)
