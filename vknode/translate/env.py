"""A container's environment, resolved as kubelet_pods.go's makeEnvironmentVariables does.

envFrom comes first, env overrides it in order, variables of Services fill what is left.
A kubelet of this version checks no names: whatever the API server admitted is passed on.

A variable from a file (fileKeyRef) is known to the pool alone, just before it creates the
container. What refers to it gets a token, which the pool replaces by the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vknode.pool.v1 import spec_pb2
from vknode.translate.downward import UnsupportedFieldError, env_field, resource_field
from vknode.translate.expansion import expand
from vknode.translate.facts import Json, NodeFacts, Resolved
from vknode.translate.lookup import Kind, MissingReference, decode, find
from vknode.translate.paths import mounted_volumes


@dataclass(slots=True)
class Environment:
    """`entries`: of several with one name the last that is there is in force; a variable from a
    file may be left out at last (an optional one). `known` is what references find: values, and
    the tokens of files. `error`: why there is none of all that."""

    entries: list[spec_pb2.EnvVar] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    error: str = ""
    # The entry of a name that may still be changed: nothing of that name follows it.
    _last: dict[str, spec_pb2.EnvVar] = field(default_factory=dict)

    def set(self, name: str, value: str) -> None:
        last = self._last.get(name)
        if last is not None and not last.HasField("file"):
            last.value = value
        else:
            self._add(spec_pb2.EnvVar(name=name, value=value))
        self.known[name] = value

    def set_file(self, name: str, file: spec_pb2.EnvFile, services: Mapping[str, str]) -> None:
        otherwise = self.known.get(name, services.get(name))
        if otherwise is not None:
            file.otherwise = otherwise
        self._add(spec_pb2.EnvVar(name=name, file=file))
        self.known[name] = file.token

    def fill(self, services: Mapping[str, str]) -> None:
        """What is left: nothing of these names, or what may be left out, is there."""
        literal = {entry.name for entry in self.entries if not entry.HasField("file")}
        missing = [
            spec_pb2.EnvVar(name=name, value=value)
            for name, value in services.items()
            if name not in literal
        ]
        self.entries = [
            *(entry for entry in missing if entry.name in self._last),
            *self.entries,
            *(entry for entry in missing if entry.name not in self._last),
        ]
        for name, value in services.items():
            self.known.setdefault(name, value)

    def _add(self, entry: spec_pb2.EnvVar) -> None:
        self.entries.append(entry)
        self._last[entry.name] = entry


def container_env(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> Environment:
    """The variables, or why the container cannot be configured."""
    try:
        env = _declared(pod, container, resolved, node, services)
    except (MissingReference, UnsupportedFieldError) as error:
        return Environment(error=str(error))
    env.fill(services)
    return env


def _declared(
    pod: Json, container: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> Environment:
    env = Environment()
    for source in container.get("envFrom") or ():
        for key, text in _env_from(source, resolved).items():
            env.set(key, text)
    for index, variable in enumerate(container.get("env") or ()):
        name = variable["name"]
        value: str | None = variable.get("value", "")
        source = variable.get("valueFrom")
        if value:
            value = expand(value, env.known, services)
        elif source and source.get("fileKeyRef") is not None:
            env.set_file(name, _file(pod, index, source["fileKeyRef"]), services)
            continue
        elif source:
            value = _value_from(pod, container, source, resolved, node)
        if value is not None:
            env.set(name, value)
    return env


def static_env(container: Json) -> dict[str, str]:
    """What exec probes are expanded with: literal values as they are written, everything else
    empty (ExpandContainerCommandOnlyStatic of a kubelet)."""
    return {one["name"]: one.get("value") or "" for one in container.get("env") or ()}


def _file(pod: Json, index: int, ref: Json) -> spec_pb2.EnvFile:
    volume = ref.get("volumeName") or ""
    if volume not in {one["name"] for one in mounted_volumes(pod)}:
        # A kubelet has the volumes that some container mounts.
        raise MissingReference(f'cannot find the volume "{volume}" referenced by FileKeyRef')
    return spec_pb2.EnvFile(
        volume=volume,
        path=ref.get("path") or "",
        key=ref.get("key") or "",
        optional=bool(ref.get("optional")),
        # Nobody else knows the UID when they write the Pod.
        token=f"@vknode-file:{pod['metadata']['uid']}:{index}@",
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
