"""The gRPC server around the service: where it listens, who may call, how it ends.

A Unix socket relies on its file mode; TCP takes clients with a certificate of the
configured CA only (`tls.py`: the files may be renewed while it runs). Health follows the
cells; reflection is on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from vknode.pool.endpoint import Endpoint, EndpointError, TlsFiles
from vknode.pool.service import PoolHost, PoolService
from vknode.pool.tls import ServerTls
from vknode.pool.v1 import cell_pb2, pool_pb2, pool_pb2_grpc

log = structlog.get_logger()

SERVICE = pool_pb2.DESCRIPTOR.services_by_name["Pool"].full_name
MESSAGE_LIMIT = 16 * 1024 * 1024

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.so_reuseport", 0),  # else a second pool would share the port in silence
    # A client that is gone without a word is noticed within 15 s …
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # … and may itself ask once a second whether we are still there.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
]


class PoolServer:
    """Serves one host on one endpoint. The host stays its owner's to start and close."""

    def __init__(self, host: PoolHost, endpoint: Endpoint, tls: TlsFiles | None = None) -> None:
        """Raises EndpointError for TCP without TLS, and for unusable TLS files."""
        if endpoint.path is None and tls is None:
            raise EndpointError(
                f"{endpoint.target}: TCP needs mutual TLS: give --tls-cert, --tls-key and "
                "--tls-client-ca, or listen on unix:PATH"
            )
        if endpoint.path is not None and tls is not None:
            raise EndpointError(
                f"{endpoint.target}: a Unix socket relies on its file mode; leave the TLS files out"
            )
        self._host = host
        self._endpoint = endpoint
        self._credentials = ServerTls(tls).credentials if tls is not None else None
        self._health = HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._follower: asyncio.Task[None] | None = None
        self._socket_id: tuple[int, int] | None = None
        self.endpoint = endpoint.target

    async def start(self) -> str:
        """Listen. Answers with the endpoint (with the real port where it was 0).
        Raises EndpointError where the address cannot be used."""
        server = grpc.aio.server(options=OPTIONS)
        pool_pb2_grpc.add_PoolServicer_to_server(PoolService(self._host), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (
                SERVICE,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            server,
        )
        await self._set_health(False)
        try:
            if self._endpoint.path is not None:
                await self._listen_unix(server)
            else:
                self._listen_tcp(server)
                await server.start()
        except BaseException:
            await server.stop(None)
            raise
        self._server = server
        self._follower = asyncio.create_task(self._follow_health())
        return self.endpoint

    def _listen_tcp(self, server: grpc.aio.Server) -> None:
        assert self._credentials is not None
        try:
            port = server.add_secure_port(self._endpoint.target, self._credentials)
        except RuntimeError as error:
            raise EndpointError(
                f"{self._endpoint.target}: cannot listen: {_why_not(self._endpoint)}"
            ) from error
        self.endpoint = f"{self._endpoint.host}:{port}"

    async def _listen_unix(self, server: grpc.aio.Server) -> None:
        path = self._endpoint.path
        assert path is not None
        await asyncio.to_thread(_clear_stale_socket, self._endpoint)
        # No moment at which others could connect: the file is born with its mode. The
        # mask is the whole process's: nothing else may run before it is given back.
        before = os.umask(0o177)
        try:
            server.add_insecure_port(self._endpoint.target)
        except RuntimeError as error:
            raise EndpointError(f"{self._endpoint.target}: cannot listen: {error}") from error
        finally:
            os.umask(before)
        await server.start()
        status = path.stat()
        self._socket_id = (status.st_dev, status.st_ino)

    async def _follow_health(self) -> None:
        """SERVING while at least one cell is healthy."""
        healthy: dict[str, bool] = {}
        watch = self._host.watch_cells()
        async with contextlib.aclosing(watch) as responses:  # type: ignore[type-var]  # a host's watch is a generator
            async for response in responses:
                if response.snapshot:
                    healthy.clear()
                for cell in response.cells:
                    healthy[cell.name] = cell.health == cell_pb2.HEALTH_HEALTHY
                for name in response.removed:
                    healthy.pop(name, None)
                await self._set_health(any(healthy.values()))

    async def _set_health(self, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ("", SERVICE):
            await self._health.set(service, status)

    async def wait(self) -> None:
        """Until the server was stopped. Raises what ended the following of health,
        which never ends by itself."""
        assert self._server is not None and self._follower is not None
        await self._follower

    async def stop(self, grace: float = 0.5) -> None:
        """End all calls, streams after `grace` seconds at the latest. Sandboxes run on."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        self._remove_socket()

    def _remove_socket(self) -> None:
        path = self._endpoint.path
        if path is None or self._socket_id is None:
            return
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == self._socket_id:
                path.unlink()


def _clear_stale_socket(endpoint: Endpoint) -> None:
    """gRPC would take the path away from whoever listens there; we must not."""
    path = endpoint.path
    assert path is not None
    if not path.parent.is_dir():
        raise EndpointError(f"{endpoint.target}: there is no directory {path.parent}")
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise EndpointError(f"{endpoint.target}: is there and no socket; remove it or use another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # left behind by a process that was killed
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise EndpointError(f"{endpoint.target}: cannot be used: {error.strerror}") from error
    raise EndpointError(
        f"{endpoint.target}: in use, another process listens there; stop it or use another path"
    )


def _why_not(endpoint: Endpoint) -> str:
    """gRPC does not tell; binding once more does."""
    host = endpoint.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return str(error.strerror or error)
    return "gRPC refused the address or the certificates"
