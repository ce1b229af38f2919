"""Which virtual node a request is meant for: the one whose port it came in on.

An API server finds a node by `status.addresses` and `status.daemonEndpoints`, and its requests
name no node. All our nodes have one address, so the port is what tells them apart. One more port,
the shared one, stands for all nodes together; it serves a node that has no port of its own.

The port is that of the connection's own end, which a client cannot choose to forge: whatever
the request says (Host header, path), it stays what the kernel accepted it on.

A request to the shared port that names a Pod is for that Pod's node; one that names none is for
all nodes, and needs the right on all of them. What a request was authorized for stays with it: by
the time it is served the port may be another node's, and the Pod another one elsewhere.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from vknode.kubeletapi.backend import PodView

# Of a port that was closed while a request on it was on its way: no node has this name.
NOBODY = ""


class ListenerNodes:
    """Whose each listening port is."""

    def __init__(self) -> None:
        self._shared: set[int] = set()
        self._nodes: dict[int, str] = {}

    def share(self, port: int) -> None:
        self._shared.add(port)

    def give(self, port: int, node: str) -> None:
        self._nodes[port] = node

    def take_back(self, port: int) -> None:
        self._nodes.pop(port, None)

    def at(self, port: int) -> str | None:
        """None: all nodes'; `NOBODY`: the port is closed."""
        if port in self._shared:
            return None
        return self._nodes.get(port, NOBODY)


LISTENERS: web.AppKey[ListenerNodes] = web.AppKey("listeners", ListenerNodes)
_PINNED: web.RequestKey[str | None] = web.RequestKey("pinned node", str)


def node_of(request: web.Request) -> str | None:
    """The name of the node that is asked; None where it is the port of all nodes, and no Pod's
    node was authorized.

    `NOBODY`, which no Node is called, for a connection that outlived its node's port.
    """
    pinned: str | None = request.get(_PINNED)
    if pinned is not None:
        return pinned
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport is not None else None
    if not isinstance(name, tuple):
        return NOBODY  # the client has gone
    return request.app[LISTENERS].at(int(name[1]))


class Lookup(Protocol):
    def lookup(self, namespace: str, name: str) -> PodView | None: ...


def requested_node(request: web.Request, backend: Lookup) -> str | None:
    """For which node a request must be authorized; None: for all of them, also where it names a
    Pod that is not there."""
    asked = node_of(request)
    path = request.match_info
    if asked is not None or "namespace" not in path or "pod" not in path:
        return asked
    pod = backend.lookup(path["namespace"], path["pod"])
    return None if pod is None else pod.node


def pin_node(request: web.Request, node: str | None) -> None:
    """From now on the request is for this node, whatever becomes of Pods and ports."""
    request[_PINNED] = node


def find_pod(request: web.Request, backend: Lookup, namespace: str, name: str) -> PodView | None:
    """The Pod, unless it is on another node than the one that is asked: a kubelet does not know
    its neighbours' Pods."""
    pod = backend.lookup(namespace, name)
    asked = node_of(request)
    if pod is None or asked not in (None, pod.node):
        return None
    return pod
