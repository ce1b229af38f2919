"""A container's environment, resolved as kubelet_pods.go's makeEnvironmentVariables does.

envFrom comes first, env overrides it in order, variables of Services fill what is left.
A kubelet of this version checks no names: whatever the API server admitted is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping

from vknode.translate.downward import UnsupportedFieldError, env_field, resource_field
from vknode.translate.expansion import expand
from vknode.translate.facts import Json, NodeFacts, Resolved
from vknode.translate.lookup import Kind, MissingReference, decode, find


def container_env(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """The variables in order and "", or nothing and why the container cannot be configured."""
    try:
        env = _declared(pod, container, resolved, node, services)
    except (MissingReference, UnsupportedFieldError) as error:
        return {}, str(error)
    for name, value in services.items():
        env.setdefault(name, value)
    return env, ""


def _declared(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> dict[str, str]:
    env: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        env.update(_env_from(source, resolved))
    for variable in container.get("env", ()):
        value: str | None = variable.get("value", "")
        if value:
            value = expand(value, env, services)
        elif variable.get("valueFrom"):
            value = _value_from(pod, container, variable["valueFrom"], resolved, node)
        if value is not None:
            env[variable["name"]] = value
    return env


def _env_from(source: Json, resolved: Resolved) -> dict[str, str]:
    kind: Kind
    if source.get("configMapRef") is not None:
        kind, ref = "configmap", source["configMapRef"]
    elif source.get("secretRef") is not None:
        kind, ref = "secret", source["secretRef"]
    else:
        return {}
    obj = find(resolved, kind, ref.get("name", ""), optional=bool(ref.get("optional")))
    data = (obj or {}).get("data") or {}
    prefix = source.get("prefix") or ""
    return {prefix + key: _text(kind, data[key]) for key in sorted(data)}


def _value_from(
    pod: Json, container: Json, source: Json, resolved: Resolved, node: NodeFacts
) -> str | None:
    """None: an optional reference without a value; the variable is left out."""
    if source.get("fieldRef") is not None:
        return env_field(pod, source["fieldRef"]["fieldPath"], node)
    if source.get("resourceFieldRef") is not None:
        return resource_field(pod, source["resourceFieldRef"], container, node, pod_level=True)
    kind: Kind
    if source.get("configMapKeyRef") is not None:
        kind, title, ref = "configmap", "ConfigMap", source["configMapKeyRef"]
    elif source.get("secretKeyRef") is not None:
        kind, title, ref = "secret", "Secret", source["secretKeyRef"]
    else:
        return ""
    optional, name, key = bool(ref.get("optional")), ref.get("name", ""), ref["key"]
    obj = find(resolved, kind, name, optional=optional)
    if obj is None:
        return None
    data = obj.get("data") or {}
    if key not in data:
        if optional:
            return None
        namespace = pod["metadata"]["namespace"]
        raise MissingReference(f"couldn't find key {key} in {title} {namespace}/{name}")
    return _text(kind, data[key])


def _text(kind: Kind, value: str) -> str:
    """Protobuf strings are UTF-8: bytes that are not become U+FFFD."""
    return decode(value).decode(errors="replace") if kind == "secret" else value
