"""A container's environment, resolved as kubelet_pods.go's makeEnvironmentVariables does.

envFrom comes first, env overrides it in order, variables of Services fill what is left.
A kubelet of this version checks no names: whatever the API server admitted is passed on.

A variable from a file (fileKeyRef) is known to the pool alone, just before it creates the
container. So `$(NAME)` cannot stand for one: `file_problems` finds such uses, and they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vknode.pool.v1 import spec_pb2
from vknode.translate.downward import UnsupportedFieldError, env_field, resource_field
from vknode.translate.expansion import expand, references
from vknode.translate.facts import Json, NodeFacts, Resolved
from vknode.translate.lookup import Kind, MissingReference, decode, find
from vknode.translate.paths import all_containers, mounted_volumes


@dataclass(slots=True)
class Environment:
    """`values` in order; `files` come after them, and those that are left out at last (optional
    ones) leave a value of the same name in force. `error`: why there is none of all that."""

    values: dict[str, str] = field(default_factory=dict)
    files: dict[str, spec_pb2.EnvFile] = field(default_factory=dict)
    error: str = ""


def container_env(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> Environment:
    """The variables, or why the container cannot be configured."""
    try:
        env = _declared(pod, container, resolved, node, services)
    except (MissingReference, UnsupportedFieldError) as error:
        return Environment(error=str(error))
    for name, value in services.items():
        if name not in env.files:
            env.values.setdefault(name, value)
    return env


def _declared(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> Environment:
    env = Environment()
    values = env.values
    for source in container.get("envFrom") or ():
        values.update(_env_from(source, resolved))
    for variable in container.get("env") or ():
        name = variable["name"]
        value: str | None = variable.get("value", "")
        source = variable.get("valueFrom")
        if value:
            value = expand(value, values, services)
        elif source and source.get("fileKeyRef") is not None:
            env.files[name] = _file(pod, source["fileKeyRef"])
            continue
        elif source:
            value = _value_from(pod, container, source, resolved, node)
        if value is not None:
            values[name] = value
            env.files.pop(name, None)
    return env


def static_env(container: Json) -> dict[str, str]:
    """What exec probes are expanded with: literal values as they are written, everything else
    empty (ExpandContainerCommandOnlyStatic of a kubelet)."""
    return {one["name"]: one.get("value") or "" for one in container.get("env") or ()}


def file_problems(pod: Json) -> Iterator[tuple[str, str]]:
    """Uses of `$(NAME)` for a variable that only the pool will know; path and reason."""
    for path, container in all_containers(pod):
        files: set[str] = set()
        for index, variable in enumerate(container.get("env") or ()):
            if (variable.get("valueFrom") or {}).get("fileKeyRef") is not None:
                files.add(variable["name"])
                continue
            if found := references(variable.get("value") or "") & files:
                yield f"{path}.env[{index}].value", _known_too_late(found)
            files.discard(variable["name"])
        texts = [
            (f"{path}.{kind}[{index}]", text)
            for kind in ("command", "args")
            for index, text in enumerate(container.get(kind) or ())
        ]
        texts += [
            (f"{path}.volumeMounts[{index}].subPathExpr", mount.get("subPathExpr") or "")
            for index, mount in enumerate(container.get("volumeMounts") or ())
        ]
        for where, text in texts:
            if found := references(text) & files:
                yield where, _known_too_late(found)


def _known_too_late(names: set[str]) -> str:
    return (
        f"$({min(names)}) comes from a file (fileKeyRef), which is read when the container is "
        "created; use the variable in the container instead"
    )


def _file(pod: Json, ref: Json) -> spec_pb2.EnvFile:
    volume = ref.get("volumeName") or ""
    if volume not in {one["name"] for one in mounted_volumes(pod)}:
        # A kubelet has the volumes that some container mounts.
        raise MissingReference(f'cannot find the volume "{volume}" referenced by FileKeyRef')
    return spec_pb2.EnvFile(
        volume=volume,
        path=ref.get("path") or "",
        key=ref.get("key") or "",
        optional=bool(ref.get("optional")),
    )


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
