"""Services by namespace, for the variables that they give to containers. Pure.

A kubelet watches all Services for this, and waits for its first list before it starts Pods; so
does the agent. What is kept of a Service is what the variables are made of, so that a cluster
with thousands of them costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from vknode.kube.models import ObjectKey, ObjectMeta

MASTER = ("default", "kubernetes")


class _Port(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str = ""
    protocol: str = "TCP"
    port: int = 0


class _Spec(msgspec.Struct, rename="camel"):
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    ports: list[_Port] | None = None


class ServiceObject(msgspec.Struct):
    metadata: ObjectMeta
    spec: _Spec = msgspec.field(default_factory=_Spec)


_decode = msgspec.json.Decoder(ServiceObject).decode


def decode_service(raw: msgspec.Raw) -> ServiceObject:
    return _decode(raw)


class ServiceStore:
    """The handler of the Service reflector."""

    def __init__(self) -> None:
        self._services: dict[str, dict[str, dict[str, Any]]] = {}
        self._lists: dict[str, list[dict[str, Any]]] = {}

    def upsert(self, obj: ServiceObject) -> None:
        meta = obj.metadata
        ports = [
            {"name": port.name, "protocol": port.protocol, "port": port.port}
            for port in obj.spec.ports or ()
        ]
        self._services.setdefault(meta.namespace, {})[meta.name] = {
            "metadata": {"namespace": meta.namespace, "name": meta.name},
            "spec": {"clusterIP": obj.spec.cluster_ip, "ports": ports},
        }
        self._changed(meta.namespace)

    def deleted(self, key: ObjectKey, last: ServiceObject | None) -> None:
        services = self._services.get(key.namespace)
        if services is None:
            return
        services.pop(key.name, None)
        if not services:
            del self._services[key.namespace]
        self._changed(key.namespace)

    def synced(self) -> None:
        pass

    def for_namespace(self, namespace: str) -> Sequence[dict[str, Any]]:
        """The Services of a namespace, and default/kubernetes."""
        found = self._lists.get(namespace)
        if found is None:
            found = list(self._services.get(namespace, {}).values())
            if namespace != MASTER[0]:
                master = self._services.get(MASTER[0], {}).get(MASTER[1])
                if master is not None:
                    found.append(master)
            self._lists[namespace] = found
        return found

    def _changed(self, namespace: str) -> None:
        if namespace == MASTER[0]:
            self._lists.clear()
        else:
            self._lists.pop(namespace, None)
