"""Ports of the host that sandboxes have. Pure.

Kubernetes' scheduler keeps two Pods from one port of a node; but the cells of a pool may be
nodes on one host, and then only the pool can tell that a port is taken there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from vknode.pool.v1 import spec_pb2

# Protocol, address ("" is every one), port.
Port = tuple[str, str, int]
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})


def ports_of(spec: spec_pb2.SandboxSpec) -> frozenset[Port]:
    """What the sandbox needs of the host; in the host's network, its own ports."""
    return frozenset(
        (
            port.protocol or "TCP",
            "" if port.host_ip in _EVERYWHERE else port.host_ip,
            port.host_port,
        )
        for container in (*spec.init_containers, *spec.containers)
        for port in container.ports
        if port.host_port
    )


def dump(ports: Iterable[Port]) -> str:
    return json.dumps(sorted(ports))


def load(text: str) -> frozenset[Port]:
    """None of them where the text is none of ours."""
    try:
        return frozenset((str(p), str(a), int(n)) for p, a, n in json.loads(text)) if text else _NO
    except (ValueError, TypeError):
        return _NO


_NO: frozenset[Port] = frozenset()


class HostPorts:
    def __init__(self) -> None:
        self._taken: dict[str, frozenset[Port]] = {}

    def claim(self, uid: str, ports: frozenset[Port]) -> Port | None:
        """Takes them all; or none, and returns one that another sandbox has."""
        taken: Mapping[str, frozenset[Port]] = self._taken
        for owner, others in taken.items():
            if owner == uid:
                continue
            for port in ports:
                if any(_clash(port, other) for other in others):
                    return port
        if ports:
            self._taken[uid] = ports
        return None

    def release(self, uid: str) -> None:
        self._taken.pop(uid, None)


def _clash(one: Port, other: Port) -> bool:
    same_address = one[1] == other[1] or not one[1] or not other[1]
    return one[0] == other[0] and one[2] == other[2] and same_address
