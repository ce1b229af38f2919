"""GET and POST /exec/{namespace}/{pod}[/{uid}]/{container}

Source: getExec in k8s.io/kubernetes pkg/kubelet/server and `k8s.io/cri-streaming`. An API server
of 1.36 or newer passes a client's WebSocket through, because our nodes declare
`ExtendWebSocketsToKubelet`.
"""

from collections.abc import Sequence

from aiohttp import web

from vknode.kubeletapi.backend import ExecRequest, PodBackend, PodView
from vknode.kubeletapi.remote_session import SessionLimits, serve_session
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.streams import StreamLimitError, Streams
from vknode.streaming.channels import PROTOCOLS, ChannelProtocol, choose_protocol

_SUPPORTED = [protocol.name for protocol in PROTOCOLS]


class Exec:
    """Runs a command in a container over a WebSocket."""

    def __init__(self, backend: PodBackend, streams: Streams, limits: SessionLimits) -> None:
        self._backend = backend
        self._streams = streams
        self._limits = limits

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for path in (
            "/exec/{namespace}/{pod}/{container}",
            "/exec/{namespace}/{pod}/{uid}/{container}",
        ):
            router.add_get(path, self._handle, allow_head=False)
            router.add_post(path, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info
        wanted = _parse_request(request)
        if isinstance(wanted, str):
            return plain_error(400, wanted)
        pod = self._backend.lookup(path["namespace"], path["pod"])
        if pod is None:
            return plain_error(404, "pod does not exist")
        if not _is_running(pod, wanted.container, path.get("uid")):
            # A kubelet looks among what runs, so a stopped container is not found either.
            return plain_error(500, f'container not found ("{wanted.container}")')
        protocol = _negotiate(request)
        if isinstance(protocol, web.Response):
            return protocol
        try:
            with self._streams.slot():
                return await serve_session(
                    request,
                    wanted,
                    self._backend.open_exec(pod, wanted),
                    protocol,
                    self._streams,
                    self._limits,
                )
        except StreamLimitError as error:
            return error.response()


def _parse_request(request: web.Request) -> ExecRequest | str:
    query = request.query
    tty, stdin, stdout, stderr = (
        query.get(name) == "1" for name in ("tty", "input", "output", "error")
    )
    stderr = stderr and not tty  # a terminal has one output
    if not (stdin or stdout or stderr):
        return "you must specify at least 1 of stdin, stdout, stderr"
    command = tuple(query.getall("command", []))
    if not command:
        return "you must specify at least one command for the container"
    return ExecRequest(request.match_info["container"], command, stdin, stdout, stderr, tty)


def _is_running(pod: PodView, container: str, uid: str | None) -> bool:
    view = pod.containers.get(container)
    return view is not None and view.state == "running" and uid in (None, pod.uid)


def _negotiate(request: web.Request) -> ChannelProtocol | web.Response:
    upgrade = request.headers.get("Upgrade", "").strip().lower()
    if upgrade.startswith("spdy/"):
        return plain_error(
            400,
            "this virtual node takes exec over WebSocket only, not SPDY/3.1: use an API server "
            "of Kubernetes 1.36 or newer and a client that speaks WebSocket (kubectl 1.31 or "
            "newer without KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false)",
        )
    if upgrade != "websocket":
        return plain_error(400, "Upgrade request required")
    offered = _offered(request.headers.getall("Sec-WebSocket-Protocol", []))
    protocol = choose_protocol(offered)
    if protocol is None:
        return plain_error(
            403,
            f"requested protocol(s) are not supported: [{' '.join(offered)}]; "
            f"supports [{' '.join(_SUPPORTED)}]",
            {"X-Accepted-Stream-Protocol-Versions": ", ".join(_SUPPORTED)},
        )
    return protocol


def _offered(headers: Sequence[str]) -> list[str]:
    names = (name.strip() for header in headers for name in header.split(","))
    return [name for name in names if name]
