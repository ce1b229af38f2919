"""Probes and hooks, with named ports resolved."""

from __future__ import annotations

from collections.abc import Iterator

from vknode.pool.v1 import spec_pb2
from vknode.translate.env import static_env
from vknode.translate.expansion import expand
from vknode.translate.facts import Json
from vknode.translate.paths import all_containers

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")


def port_problems(pod: Json) -> Iterator[tuple[str, str]]:
    """Ports given by a name that the container does not declare; path and reason."""
    for path, container in all_containers(pod):
        handlers = [(f"{path}.{name}", container.get(name)) for name in _PROBES]
        lifecycle = container.get("lifecycle") or {}
        handlers += [(f"{path}.lifecycle.{name}", lifecycle.get(name)) for name in _HOOKS]
        for where, handler in handlers:
            for kind in ("httpGet", "tcpSocket"):
                action = (handler or {}).get(kind)
                if action and _port(action["port"], container) is None:
                    yield (
                        f"{where}.{kind}.port",
                        f"the container declares no port named {action['port']!r}",
                    )


def _port(port: int | str, container: Json) -> int | None:
    if isinstance(port, int):
        return port
    for declared in container.get("ports", ()):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    # A kubelet also takes a number that was written as a string.
    return int(port) if port.isdecimal() else None


def handler(source: Json, container: Json) -> spec_pb2.Handler:
    """Raises ValueError for a port name that check() would have refused."""
    result = spec_pb2.Handler()
    if source.get("exec"):
        result.exec.command.extend(source["exec"].get("command") or ())
    elif source.get("httpGet"):
        action = source["httpGet"]
        result.http_get.path = action.get("path") or "/"
        result.http_get.port = _number(action["port"], container)
        result.http_get.host = action.get("host") or ""
        result.http_get.scheme = action.get("scheme") or "HTTP"
        for header in action.get("httpHeaders") or ():
            result.http_get.headers.add(name=header["name"], value=header.get("value", ""))
    elif source.get("tcpSocket"):
        action = source["tcpSocket"]
        result.tcp_socket.port = _number(action["port"], container)
        result.tcp_socket.host = action.get("host") or ""
    elif source.get("grpc"):
        result.grpc.port = source["grpc"]["port"]
        result.grpc.service = source["grpc"].get("service") or ""
    elif "sleep" in source:
        result.sleep.seconds = source["sleep"].get("seconds", 0)
    return result


def _number(port: int | str, container: Json) -> int:
    number = _port(port, container)
    if number is None:
        raise ValueError(f"container {container['name']!r} declares no port named {port!r}")
    return number


def probe(source: Json, container: Json) -> spec_pb2.Probe:
    """A kubelet expands variables in the commands of probes, but not in those of hooks."""
    action = handler(source, container)
    if action.HasField("exec"):
        env = static_env(container)
        action.exec.command[:] = [expand(word, env) for word in action.exec.command]
    return spec_pb2.Probe(
        handler=action,
        initial_delay_seconds=source.get("initialDelaySeconds", 0),
        timeout_seconds=source.get("timeoutSeconds", 1),
        period_seconds=source.get("periodSeconds", 10),
        success_threshold=source.get("successThreshold", 1),
        failure_threshold=source.get("failureThreshold", 3),
        termination_grace_period_seconds=source.get("terminationGracePeriodSeconds"),
    )
