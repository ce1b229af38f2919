"""The listening sockets: the shared port, and one port a node.

A socket that listens costs some KiB and no task; asyncio's selector wakes for all of them. All
lead to the same server object, so that what the requests do with each other (the limit of
streams, the stop) is the same whatever port they came in on.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web

from vknode.kubeletapi.connections import let_go
from vknode.kubeletapi.doorman import Doorman
from vknode.kubeletapi.node_identity import ListenerNodes
from vknode.kubeletapi.node_ports import PortBook, PortRange
from vknode.kubeletapi.settings import KubeletApiError

_log = structlog.get_logger()
_NO_FILES = (errno.EMFILE, errno.ENFILE)


class NodeListeners:
    """Opens and closes ports between `start` and the doorman's `close`, which closes all."""

    def __init__(self, nodes: ListenerNodes, address: str, ports: PortRange | None) -> None:
        self._nodes = nodes
        self._address = address
        self._book = PortBook(ports)
        self._own: dict[str, tuple[int, socket.socket]] = {}
        self._server: web.Server | None = None
        self._doorman: Doorman | None = None
        self._tls: Callable[[], ssl.SSLContext] | None = None

    def start(
        self,
        server: web.Server,
        doorman: Doorman,
        tls: Callable[[], ssl.SSLContext],
        shared_port: int,
    ) -> int:
        """Listens on the shared port and returns it. `tls` is asked for each connection.
        Raises `KubeletApiError`."""
        self._server, self._doorman, self._tls = server, doorman, tls
        try:
            listener = _listen(self._address, shared_port)
        except OSError as error:
            raise KubeletApiError(
                f"cannot listen on {self._address} port {shared_port}: {error.strerror}; "
                "choose a free port and an address of this machine"
            ) from None
        port: int = listener.getsockname()[1]
        doorman.listen(listener, tls)
        self._book.never.add(port)
        self._nodes.share(port)
        return port

    def claim(self, node: str, port: int) -> None:
        """The Node object names this port: it is kept for the node."""
        self._book.claim(node, port)

    def open(self, node: str) -> int:
        """The port on which this node is asked from now on. Raises `KubeletApiError`."""
        there = self._own.get(node)
        if there is not None:
            return there[0]
        assert self._doorman is not None and self._tls is not None
        listener = self._bind(node)
        port: int = listener.getsockname()[1]
        self._book.take(node, port)
        self._nodes.give(port, node)
        self._own[node] = port, listener
        self._doorman.listen(listener, self._tls)
        return port

    def close(self, node: str) -> None:
        """New connections are refused, idle ones closed; what runs on them goes on to its end."""
        self._book.release(node)
        there = self._own.pop(node, None)
        if there is None:
            return
        port, listener = there
        self._nodes.take_back(port)
        assert self._doorman is not None and self._server is not None
        self._doorman.leave(listener)
        # The port may soon be another node's: no connection may ask that one by its old end.
        for handler, transport in list(self._server._connections.items()):
            if _port_of(transport) == port:
                let_go(handler)

    def _bind(self, node: str) -> socket.socket:
        for port in self._book.candidates(node):
            try:
                return _listen(self._address, port)
            except OSError as error:
                if error.errno in _NO_FILES:
                    raise KubeletApiError(
                        f"no port for node {node}: {error.strerror}; each node needs one: raise "
                        "the agent's limit of open files (ulimit -n, LimitNOFILE)"
                    ) from None
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise KubeletApiError(
                        f"no port for node {node}: cannot listen on {self._address} port {port}: "
                        f"{error.strerror}; kubelet.address must be one of this machine"
                    ) from None
        raise KubeletApiError(
            f"kubelet.nodePorts: none of {self._book.range} is free for node {node} "
            f"({len(self._book)} are other nodes'); give a wider range"
        )


def _port_of(transport: Any) -> int | None:
    name = transport.get_extra_info("sockname")
    return name[1] if isinstance(name, tuple) else None


def _listen(address: str, port: int) -> socket.socket:
    """Raises OSError."""
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
        # SO_REUSEADDR lets two sockets bind one port as long as neither listens.
        listener.listen(128)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
