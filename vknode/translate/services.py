"""Environment variables for Services, as the kubelet's envvars package makes them."""

from __future__ import annotations

from collections.abc import Sequence

from vknode.translate.facts import Json


def service_env(pod: Json, services: Sequence[Json]) -> dict[str, str]:
    """default/kubernetes always, the Pod's namespace with enableServiceLinks (the default)."""
    namespace = pod["metadata"]["namespace"]
    links = pod["spec"].get("enableServiceLinks", True)
    chosen: dict[str, Json] = {}
    for service in services:
        meta = service["metadata"]
        if service["spec"].get("clusterIP", "") in ("", "None") or not service["spec"].get("ports"):
            continue
        if meta["namespace"] == "default" and meta["name"] == "kubernetes":
            chosen.setdefault("kubernetes", service)
        elif links and meta["namespace"] == namespace:
            chosen[meta["name"]] = service
    env: dict[str, str] = {}
    for name in sorted(chosen):
        _add(env, name, chosen[name]["spec"])
    return env


def _variable(name: str) -> str:
    return name.replace("-", "_").upper()


def _add(env: dict[str, str], name: str, spec: Json) -> None:
    prefix, ip, ports = _variable(name), spec["clusterIP"], spec["ports"]
    address = f"[{ip}]" if ":" in ip else ip
    env[f"{prefix}_SERVICE_HOST"] = ip
    env[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
    for port in ports:
        if port.get("name"):
            env[f"{prefix}_SERVICE_PORT_{_variable(port['name'])}"] = str(port["port"])
    for index, port in enumerate(ports):
        protocol = port.get("protocol") or "TCP"
        url = f"{protocol.lower()}://{address}:{port['port']}"
        if index == 0:
            env[f"{prefix}_PORT"] = url
        one = f"{prefix}_PORT_{port['port']}_{protocol.upper()}"
        env[one] = url
        env[f"{one}_PROTO"] = protocol.lower()
        env[f"{one}_PORT"] = str(port["port"])
        env[f"{one}_ADDR"] = ip
