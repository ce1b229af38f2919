"""The HTTPS listener of the kubelet API: one port for all nodes of the agent."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from vknode.kubeletapi.auth import require_client
from vknode.kubeletapi.backend import PodBackend
from vknode.kubeletapi.container_logs import ContainerLogs
from vknode.kubeletapi.exec import Exec
from vknode.kubeletapi.pods import Pods
from vknode.kubeletapi.remote_session import SessionLimits
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.settings import KubeletApiError, KubeletApiSettings, make_tls_context
from vknode.kubeletapi.streams import Streams, cancel_and_wait

_log = structlog.get_logger()


class KubeletApi:
    """Serves the API between `start` and `stop`; can be started once."""

    def __init__(self, backend: PodBackend, settings: KubeletApiSettings) -> None:
        self._settings = settings
        self._streams = Streams(settings.max_streams)
        self._app = web.Application(
            middlewares=[
                _plain_errors,
                require_client(frozenset(settings.allowed_client_names)),
            ]
        )
        router = self._app.router
        ContainerLogs(backend, self._streams).add_routes(router)
        limits = SessionLimits(settings.max_message_bytes, settings.ping_interval)
        Exec(backend, self._streams, limits).add_routes(router)
        Pods(backend).add_routes(router)
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def running_streams(self) -> int:
        """Logs and sessions that are open now."""
        return self._streams.running

    async def start(self) -> int:
        """Listens, and returns the port. Raises `KubeletApiError` naming what is wrong."""
        settings = self._settings
        self._tls = make_tls_context(settings)
        listener = _listen(settings.address, settings.port)
        runner = web.AppRunner(
            self._app,
            access_log=None,
            # A client that leaves ends its request, also while nothing is written to it.
            handler_cancellation=True,
            shutdown_timeout=settings.stop_timeout,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener, ssl_context=self._tls).start()
        except BaseException:
            listener.close()
            await runner.cleanup()
            raise
        self._runner = runner
        self._renewing = asyncio.create_task(self._renew())
        port: int = listener.getsockname()[1]
        _log.info("kubelet_api_listening", address=settings.address, port=port)
        return port

    async def _renew(self) -> None:
        """Certificates are renewed under a running process: by cert-manager, or as a Secret."""
        files = self._fingerprint()
        while True:
            await asyncio.sleep(self._settings.certificate_check_interval)
            found = self._fingerprint()
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

    def _fingerprint(self) -> tuple[tuple[int, int] | None, ...]:
        """Changes when one of the files does."""
        found: list[tuple[int, int] | None] = []
        settings = self._settings
        for path in (settings.serving_cert, settings.serving_key, settings.client_ca):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_ino))
        return tuple(found)

    def reload_certificates(self) -> None:
        """Uses the serving certificate and client CA that are in the files now.

        Only connections made later see them; a CA that was trusted stays so. Raises
        `KubeletApiError` and changes nothing if the files are wrong.
        """
        if self._tls is None:
            return
        make_tls_context(self._settings)
        self._tls.load_cert_chain(self._settings.serving_cert, self._settings.serving_key)
        self._tls.load_verify_locations(self._settings.client_ca)

    async def stop(self) -> None:
        """Stops listening and ends every stream: sessions are told why, logs are cut."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        if self._renewing is not None:
            await cancel_and_wait(self._renewing)
        self._streams.stop()
        server = runner.server
        # aiohttp keeps each connection here until it is lost, and forgets all in its cleanup.
        connections = list(server._connections.values()) if server is not None else []
        await runner.cleanup()
        # What still waits for its client's answer to TLS' good-bye has nothing more to send.
        for transport in connections:
            transport.abort()
        await asyncio.sleep(0)  # the sockets are closed in the loop's next round


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, _, _, _, target = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                with contextlib.suppress(OSError):  # IPv4 too, where the system can
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(target)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise KubeletApiError(
            f"cannot listen on {address} port {port}: {error.strerror}; "
            "choose a free port and an address of this machine"
        ) from None
    return listener


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
