"""The HTTPS server of the kubelet API: one for all nodes of the agent, with a port for each.

Requests name no node, and a metrics collector must not take one node's usage for another's: the
port tells who is asked (`node_identity`, `node_listeners`).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from cryptography import x509

from vknode.filemark import Mark, mark
from vknode.kubeletapi.attach import Attach
from vknode.kubeletapi.auth import require_access
from vknode.kubeletapi.authentication import Authenticator
from vknode.kubeletapi.backend import PodBackend
from vknode.kubeletapi.configz import Configz
from vknode.kubeletapi.connections import let_go
from vknode.kubeletapi.container_logs import ContainerLogs
from vknode.kubeletapi.disabled import Disabled
from vknode.kubeletapi.doorman import Doorman
from vknode.kubeletapi.exec import Exec
from vknode.kubeletapi.healthz import Healthz
from vknode.kubeletapi.http_log import quiet_logger
from vknode.kubeletapi.kubelet_metrics import KubeletMetrics
from vknode.kubeletapi.measuring import Measuring
from vknode.kubeletapi.node_identity import LISTENERS, ListenerNodes
from vknode.kubeletapi.node_listeners import NodeListeners
from vknode.kubeletapi.one_node import OneNode
from vknode.kubeletapi.pods import Pods
from vknode.kubeletapi.port_forward import PortForward
from vknode.kubeletapi.probe_metrics import ProbeMetrics
from vknode.kubeletapi.remote_session import SessionLimits
from vknode.kubeletapi.request_counts import RequestCounts
from vknode.kubeletapi.resource_metrics import ResourceMetrics
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.reviews import Reviewer, Reviews
from vknode.kubeletapi.routing import application
from vknode.kubeletapi.running_pods import RunningPods
from vknode.kubeletapi.settings import (
    KubeletApiError,
    KubeletApiSettings,
    load_serving_pem,
    make_tls_context,
)
from vknode.kubeletapi.stats_summary import StatsSummary
from vknode.kubeletapi.streams import Streams, cancel_and_wait
from vknode.kubeletapi.system_logs import SystemLogs
from vknode.kubeletapi.usage import NodeBackend

_log = structlog.get_logger()

#: Seconds that a connection may rest between two requests: an API server keeps its for 90.
KEEPALIVE = 120.0
#: Bytes of a request line, and of a header; a kubelet takes 1 MiB together.
LONGEST_HEAD = 256 * 1024


class KubeletApi:
    """Serves the API between `start` and `stop`; can be started once. `reviewer` says who is who
    and who may what."""

    def __init__(
        self,
        backend: PodBackend,
        nodes: NodeBackend,
        settings: KubeletApiSettings,
        reviewer: Reviewer,
    ) -> None:
        self._settings = settings
        self._streams = Streams(settings.max_streams)
        self.counts = RequestCounts()
        # Of a certificate that came by `use_certificate`: seconds since the epoch.
        self.certificate_expiry: float | None = None
        self._reviews = Reviews(reviewer, settings.authentication, settings.authorization)
        always_allow = settings.authorization.always_allow
        self._app = application(
            [
                self.counts.middleware(),
                _plain_errors,
                require_access(
                    backend,
                    Authenticator(self._reviews, tokens=settings.authentication.token_review),
                    None if always_allow else self._reviews,
                ),
            ]
        )
        whose = self._app[LISTENERS] = ListenerNodes()
        self._listeners = NodeListeners(whose, settings.address, settings.node_ports)
        router = self._app.router
        ContainerLogs(backend, self._streams).add_routes(router)
        limits = SessionLimits(settings.max_message_bytes, settings.ping_interval)
        Exec(backend, self._streams, limits).add_routes(router)
        Attach(backend, self._streams, limits).add_routes(router)
        PortForward(backend, self._streams, limits).add_routes(router)
        Pods(backend).add_routes(router)
        RunningPods(nodes).add_routes(router)
        self._measuring = Measuring(nodes)
        one_node = OneNode(nodes)
        StatsSummary(self._measuring, one_node).add_routes(router)
        ResourceMetrics(self._measuring, one_node).add_routes(router)
        ProbeMetrics(self._measuring, one_node).add_routes(router)
        KubeletMetrics(nodes).add_routes(router)
        Configz(nodes, one_node).add_routes(router)
        Healthz().add_routes(router)
        self._system_logs: SystemLogs | None = None
        if settings.system_logs is not None:
            self._system_logs = SystemLogs(settings.system_logs)
            self._system_logs.add_routes(router)
        Disabled(but=("/logs",) if self._system_logs is not None else ()).add_routes(router)
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None
        self._pem: bytes | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._doorman: Doorman | None = None

    @property
    def running_streams(self) -> int:
        """Logs and sessions that are open now."""
        return self._streams.running

    async def start(self) -> int:
        """Listens, and returns the port shared by all nodes. Raises `KubeletApiError` naming
        what is wrong."""
        settings = self._settings
        files = self._mark()  # before they are read: what changes meanwhile is seen to be new
        self._tls = self._make_tls()
        runner = web.AppRunner(
            self._app,
            access_log=None,
            # A client that leaves ends its request, also while nothing is written to it.
            handler_cancellation=True,
            shutdown_timeout=settings.stop_timeout,
            keepalive_timeout=KEEPALIVE,
            logger=quiet_logger(),
            # A long `kubectl exec` has its script in the request line.
            max_line_size=LONGEST_HEAD,
            max_field_size=LONGEST_HEAD,
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        doorman = Doorman(server, _has_asked, lambda: len(server._connections))
        try:
            port = self._listeners.start(server, doorman, self._context, settings.port)
        except BaseException:
            await doorman.close()
            await runner.cleanup()
            raise
        self._runner, self._doorman = runner, doorman
        self._renewing = asyncio.create_task(self._renew(files))
        _log.info("kubelet_api_listening", address=settings.address, port=port)
        if settings.authorization.always_allow:
            _log.warning(
                "kubelet_api_authorizes_everybody",
                hint="kubelet.authorization.mode is AlwaysAllow: whoever has a certificate of "
                "clientCA or a token of the cluster can run commands in every Pod; for "
                "development only, write Webhook",
            )
        return port

    @property
    def waits_for_certificate(self) -> bool:
        """Nobody gets through before `use_certificate`."""
        return self._settings.serving_cert is None and self._pem is None

    def claim_port(self, node: str, port: int) -> None:
        """The Node object names this port: no other node gets it, if that can be."""
        self._listeners.claim(node, port)

    async def open_node(self, node: str) -> int:
        """Returns the port that is this node's own from now on, the same for the same node if
        that can be. Between `start` and `stop`. Raises `KubeletApiError`."""
        if self._runner is None:
            raise KubeletApiError(f"no port for node {node}: the kubelet API is not running")
        return self._listeners.open(node)

    async def close_node(self, node: str) -> None:
        """The node has gone, and its port with it. Streams on it go on to their end."""
        self._measuring.forget(node)
        self._listeners.close(node)

    async def _renew(self, files: Mark) -> None:
        """Certificates are renewed under a running process: by cert-manager, or as a Secret."""
        while True:
            await asyncio.sleep(self._settings.certificate_check_interval)
            found = self._mark()
            if found == files:
                continue
            try:
                self.reload_certificates()
            except (KubeletApiError, OSError) as error:
                # Half-written perhaps: the next look sees it whole.
                _log.warning("kubelet_api_certificates_unusable", error=str(error))
            else:
                files = found
                _log.info("kubelet_api_certificates_reloaded")

    def _mark(self) -> Mark:
        settings = self._settings
        files = (settings.serving_cert, settings.serving_key, settings.client_ca)
        return mark(file for file in files if file is not None)

    def reload_certificates(self) -> None:
        """Uses the serving certificate and the client CAs that are in the files now, from the
        next connection on. Raises `KubeletApiError` and changes nothing if they are wrong.

        Where a client CA is trusted no more, a connection that is open has no further request;
        what runs on it goes on."""
        if self._tls is not None:
            self._use(self._make_tls())

    def use_certificate(self, pem: bytes) -> None:
        """Serves with this key and certificate (with its chain) from the next connection on;
        those that are open go on as they are. Raises `KubeletApiError` and changes nothing if
        they do not fit."""
        before, self._pem = self._pem, pem
        try:
            made = self._make_tls()
        except KubeletApiError:
            self._pem = before
            raise
        chain = x509.load_pem_x509_certificates(pem)
        self.certificate_expiry = min(one.not_valid_after_utc.timestamp() for one in chain)
        if self._tls is not None:
            self._use(made)

    def _use(self, tls: ssl.SSLContext) -> None:
        """Nobody stays who came in by a client CA that is trusted no more."""
        before, self._tls = self._tls, tls
        if before is None or self._runner is None or self._doorman is None:
            return  # nobody is in yet
        gone = set(before.get_ca_certs(binary_form=True)) - set(tls.get_ca_certs(binary_form=True))
        if gone:
            self._doorman.begin_anew()
            assert self._runner.server is not None
            for connection in self._runner.server.connections:
                let_go(connection)

    def _make_tls(self) -> ssl.SSLContext:
        context = make_tls_context(self._settings)
        if self._pem is not None:
            load_serving_pem(context, self._pem)
        # A session that is resumed brings its certificate along, which nobody verifies again.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        return context

    def _context(self) -> ssl.SSLContext:
        """Of this moment: a client CA that was removed is no longer trusted."""
        assert self._tls is not None
        return self._tls

    async def stop(self) -> None:
        """Stops listening and ends every stream: sessions are told why, logs are cut."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        if self._renewing is not None:
            await cancel_and_wait(self._renewing)
        self._streams.stop()
        if self._system_logs is not None:
            self._system_logs.stop()
        self._measuring.close()
        server = runner.server
        # aiohttp keeps each connection here until it is lost, and forgets all in its cleanup.
        connections = list(server._connections.values()) if server is not None else []
        await self._reviews.close()
        if self._doorman is not None:
            await self._doorman.close()
        await runner.cleanup()
        # What still waits for its client's answer to TLS' good-bye has nothing more to send.
        for transport in connections:
            # Before 3.11.5 asyncio's TLS transports cannot be aborted once they are closed.
            with contextlib.suppress(AttributeError):
                transport.abort()
        await asyncio.sleep(0)  # the sockets are closed in the loop's next round


def _has_asked(handler: asyncio.Protocol) -> bool:
    assert isinstance(handler, web.RequestHandler)
    return handler._request_count > 0


@web.middleware
async def _plain_errors(
    request: web.Request,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Turns aiohttp's own errors into a kubelet's plain text."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return plain_error(404, "404 page not found\n")
    except web.HTTPMethodNotAllowed as error:
        return plain_error(405, "Method Not Allowed", {"Allow": error.headers["Allow"]})
