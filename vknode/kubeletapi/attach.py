"""GET and POST /attach/{namespace}/{pod}[/{uid}]/{container}

Source: getAttach in k8s.io/kubernetes pkg/kubelet/server and GetAttach in pkg/kubelet. Whether
there is a terminal is decided by the container's spec, whatever the client says.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from aiohttp import web

from vknode.kubeletapi.backend import AttachRequest, ExecSession, PodView
from vknode.kubeletapi.negotiation import NO_STREAMS, wanted_streams
from vknode.kubeletapi.session_endpoint import SessionEndpoint


class Attach(SessionEndpoint[AttachRequest]):
    """Joins a running container's own streams."""

    name = "attach"
    trouble = "error attaching to container"

    def parse(self, request: web.Request) -> AttachRequest | str:
        streams = wanted_streams(request.query)
        if streams is None:
            return NO_STREAMS
        return AttachRequest(request.match_info["container"], *streams)

    def fit(self, asked: AttachRequest, pod: PodView) -> AttachRequest | str:
        tty = pod.containers[asked.container].tty
        if tty and asked.stderr:
            return "tty and stderr cannot both be true"
        return replace(asked, tty=tty)

    def open(self, pod: PodView, asked: AttachRequest) -> AbstractAsyncContextManager[ExecSession]:
        return self._backend.open_attach(pod, asked)
