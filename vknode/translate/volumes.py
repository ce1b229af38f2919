"""Volumes, with the content of configMap, secret, downwardAPI and projected resolved."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vknode.pool.v1 import spec_pb2
from vknode.translate.downward import UnsupportedFieldError, metadata_field, resource_field
from vknode.translate.facts import CertificateNeed, Json, Missing, NodeFacts, Resolved
from vknode.translate.lookup import (
    Kind,
    MissingReference,
    config_map_bytes,
    find,
    secret_bytes,
)
from vknode.translate.needs import certificate_need, token_need
from vknode.translate.paths import all_containers, mounted_volumes
from vknode.translate.security import run_as_user
from vknode.translate.trust import trust_need

_DEFAULT_MODE = 0o644
# What a kubelet adds for the group in a read-only volume when there is an fsGroup
# (pkg/volume/volume_linux.go).
_GROUP_READ = 0o440
_TOKEN_MODE = 0o600

_PULL = {
    "Always": spec_pb2.IMAGE_PULL_POLICY_ALWAYS,
    "IfNotPresent": spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT,
    "Never": spec_pb2.IMAGE_PULL_POLICY_NEVER,
}


@dataclass(frozen=True, slots=True)
class VolumeNotReady:
    """A volume's content is not there yet; `message` is a kubelet's FailedMount text."""

    volume: str
    message: str


def pull_policy(name: str | None) -> spec_pb2.ImagePullPolicy.ValueType:
    """The API server defaults it; without one, what it would choose for a tag."""
    return _PULL[name or "IfNotPresent"]


@dataclass(slots=True)
class _Content:
    """Files of one volume by path; a later one of the same path wins."""

    fs_group: bool
    default_mode: int
    default_user: int | None
    files: dict[str, spec_pb2.File] = field(default_factory=dict)
    sensitive: bool = False

    def add(self, path: str, content: bytes, mode: int | None, user: int | None) -> None:
        bits = self.default_mode if mode is None else mode
        if self.fs_group:
            bits |= _GROUP_READ
        owner = self.default_user if user is None else user
        self.files[path] = spec_pb2.File(path=path, content=content, mode=bits, user=owner)


def volumes(
    pod: Json, resolved: Resolved, node: NodeFacts, *, runs: bool = False
) -> list[spec_pb2.Volume] | VolumeNotReady:
    """All volumes that are mounted, in order, or the first whose content is missing. Where the
    Pod `runs` those are kept as they are, as a kubelet does."""
    found = []
    for volume in mounted_volumes(pod):
        try:
            found.append(_volume(pod, volume, resolved, node))
        except (MissingReference, UnsupportedFieldError) as error:
            name = volume["name"]
            message = f'MountVolume.SetUp failed for volume "{name}" : {error}'
            if not runs:
                return VolumeNotReady(name, message)
            found.append(spec_pb2.Volume(name=name, keep=spec_pb2.KeptVolume(reason=message)))
    return found


def _volume(pod: Json, volume: Json, resolved: Resolved, node: NodeFacts) -> spec_pb2.Volume:
    result = spec_pb2.Volume(name=volume["name"])
    if volume.get("hostPath") is not None:
        result.host_path.path = volume["hostPath"]["path"]
        result.host_path.type = volume["hostPath"].get("type") or ""
        result.host_path.within[:] = node.host_paths
    elif volume.get("image") is not None:
        result.image.reference = volume["image"].get("reference") or ""
        result.image.pull_policy = pull_policy(volume["image"].get("pullPolicy"))
    elif volume.get("configMap") is not None:
        _files(result, _object(pod, volume["configMap"], "configmap", resolved))
    elif volume.get("secret") is not None:
        _files(result, _object(pod, volume["secret"], "secret", resolved))
    elif volume.get("downwardAPI") is not None:
        content = _content(pod, volume["downwardAPI"])
        _downward(content, pod, volume["downwardAPI"], node)
        _files(result, content)
    elif volume.get("projected") is not None:
        _files(result, _projected(pod, volume, resolved, node))
    else:
        # A volume without a source is an emptyDir to the API server as well.
        source = volume.get("emptyDir") or {}
        result.empty_dir.memory = source.get("medium") == "Memory"
        result.empty_dir.size_limit = str(source.get("sizeLimit") or "")
    return result


def _files(result: spec_pb2.Volume, content: _Content) -> None:
    result.files.sensitive = content.sensitive
    result.files.files.extend(content.files[path] for path in sorted(content.files))


def _content(pod: Json, source: Json) -> _Content:
    return _Content(
        fs_group=(pod["spec"].get("securityContext") or {}).get("fsGroup") is not None,
        default_mode=source.get("defaultMode", _DEFAULT_MODE),
        default_user=source.get("defaultUser"),
    )


def _object(pod: Json, source: Json, kind: Kind, resolved: Resolved) -> _Content:
    content = _content(pod, source)
    _add_object(content, source, kind, resolved)
    return content


_READERS: Mapping[Kind, tuple[Callable[[Json], dict[str, bytes]], str]] = {
    "configmap": (config_map_bytes, "configmap references non-existent config key"),
    "secret": (secret_bytes, "references non-existent secret key"),
}


def _add_object(content: _Content, source: Json, kind: Kind, resolved: Resolved) -> None:
    optional = bool(source.get("optional"))
    name = source.get("name") or source.get("secretName") or ""
    obj = find(resolved, kind, name, optional=optional)
    read, complaint = _READERS[kind]
    data = read(obj) if obj is not None else {}
    content.sensitive = content.sensitive or kind == "secret"
    items = source.get("items")
    if not items:
        for key in sorted(data):
            content.add(key, data[key], None, None)
        return
    for item in items:
        key = item["key"]
        if key in data:
            content.add(_clean(item["path"]), data[key], item.get("mode"), item.get("user"))
        elif not optional:
            raise MissingReference(f"{complaint}: {key}")


def _downward(content: _Content, pod: Json, source: Json, node: NodeFacts) -> None:
    for item in source.get("items") or ():
        text = ""
        if item.get("fieldRef"):
            text = metadata_field(pod, item["fieldRef"]["fieldPath"])
        elif item.get("resourceFieldRef"):
            text = resource_field(pod, item["resourceFieldRef"], None, node, pod_level=False)
        content.add(_clean(item["path"]), text.encode(), item.get("mode"), item.get("user"))


def _projected(pod: Json, volume: Json, resolved: Resolved, node: NodeFacts) -> _Content:
    projected = volume["projected"]
    content = _content(pod, projected)
    problems: list[str] = []
    for index, source in enumerate(projected.get("sources") or ()):
        try:
            if source.get("configMap") is not None:
                _add_object(content, source["configMap"], "configmap", resolved)
            elif source.get("secret") is not None:
                _add_object(content, source["secret"], "secret", resolved)
            elif source.get("downwardAPI") is not None:
                _downward(content, pod, source["downwardAPI"], node)
            elif source.get("serviceAccountToken") is not None:
                _token(content, pod, source["serviceAccountToken"], resolved)
            elif source.get("clusterTrustBundle") is not None:
                _trust(content, pod, source["clusterTrustBundle"], resolved)
            elif source.get("podCertificate") is not None:
                certificate = source["podCertificate"]
                need = certificate_need(pod, volume["name"], index, certificate)
                _certificate(content, pod, certificate, need, resolved)
        except (MissingReference, UnsupportedFieldError) as error:
            problems.append(str(error))
    if problems:
        # As the kubelet aggregates errors.
        unique = list(dict.fromkeys(problems))
        raise MissingReference(unique[0] if len(unique) == 1 else f"[{', '.join(unique)}]")
    return content


def _token(content: _Content, pod: Json, source: Json, resolved: Resolved) -> None:
    need = token_need(pod, source)
    if need not in resolved.tokens:
        raise LookupError(f"a token for {need.service_account!r} is needed but was not requested")
    token = resolved.tokens[need]
    if isinstance(token, Missing):
        raise MissingReference(token.message)
    content.sensitive = True
    _add_private(content, pod, source, source["path"], token)


def _trust(content: _Content, pod: Json, source: Json, resolved: Resolved) -> None:
    need = trust_need(source)
    if need not in resolved.trust:
        raise LookupError(f"trust bundle {need.name or need.signer!r} was not looked up")
    bundle = resolved.trust[need]
    if isinstance(bundle, Missing):
        raise MissingReference(bundle.message)
    _add_private(content, pod, source, source["path"], bundle)


def _certificate(
    content: _Content, pod: Json, source: Json, need: CertificateNeed, resolved: Resolved
) -> None:
    if need not in resolved.certificates:
        raise LookupError(f"a certificate of {need.signer!r} is needed but was not requested")
    found = resolved.certificates[need]
    if isinstance(found, Missing):
        raise MissingReference(found.message)
    content.sensitive = True
    for name, text in (
        ("credentialBundlePath", found.key + found.chain),
        ("keyPath", found.key),
        ("certificateChainPath", found.chain),
    ):
        if source.get(name):
            _add_private(content, pod, source, source[name], text)


def _add_private(content: _Content, pod: Json, source: Json, path: str, text: str) -> None:
    """A file that is its user's alone, where it has one."""
    user: Any = source.get("user")
    if user is None:
        user = content.default_user
    if user is None:
        user = _common_user(pod)
    mode = _TOKEN_MODE if user is not None or content.fs_group else None
    content.add(_clean(path), text.encode(), mode, user)


def _common_user(pod: Json) -> int | None:
    """The user of all containers, where all are given the same: tokens become theirs."""
    users = {run_as_user(pod, container) for _, container in all_containers(pod)}
    return users.pop() if len(users) == 1 else None


def _clean(path: str) -> str:
    return posixpath.normpath(path)
