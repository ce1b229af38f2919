"""Paths in a Pod, and the way back from a path in a SandboxSpec."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vknode.translate.facts import Json

CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def all_containers(pod: Json) -> Iterator[tuple[str, Json]]:
    """Every container with its path, in the order of their starts."""
    spec = pod["spec"]
    for kind in CONTAINER_LISTS:
        for index, container in enumerate(spec.get(kind) or ()):
            yield f"spec.{kind}[{index}]", container


def mounted_volumes(pod: Json) -> list[Json]:
    """Volumes that some container mounts. A kubelet never sets up the others, nor waits
    for what they refer to; the sandbox does without them as well."""
    used = {
        mount["name"]
        for _, container in all_containers(pod)
        for mount in container.get("volumeMounts") or ()
    }
    return [volume for volume in pod["spec"].get("volumes") or () if volume["name"] in used]


# Proto names that are not simply the Kubernetes name in snake case. None: the step has
# no counterpart and vanishes.
_POD = {
    "labels": "metadata.labels",
    "annotations": "metadata.annotations",
    "uid": "metadata.uid",
    "namespace": "metadata.namespace",
    "name": "metadata.name",
    "generation": "metadata.generation",
    "cell": "spec.nodeName",
    "tenant": "metadata.namespace",
    "runtime_handler": "spec.runtimeClassName",
    "host_pid": "spec.hostPID",
    "host_ipc": "spec.hostIPC",
    "security": "spec.securityContext",
    "registry_credentials": "spec.imagePullSecrets",
    "network": "spec",
    "host_ips": "status.hostIPs",
    "pod_ip_token": "spec",
    "pod_ips_token": "spec",
}
_NETWORK = {
    "name": "",
    "hostname_as_fqdn": "setHostnameAsFQDN",
    "domainname": "subdomain",
    "dns": "dnsConfig",
}
_INNER = {
    "security": "securityContext",
    "seccomp": "seccompProfile",
    "app_armor": "appArmorProfile",
    "se_linux": "seLinuxOptions",
    "capabilities_add": "capabilities.add",
    "capabilities_drop": "capabilities.drop",
    "read_only_root_filesystem": "readOnlyRootFilesystem",
    "fs_group_on_root_mismatch": "fsGroupChangePolicy",
    "supplemental_groups_strict": "supplementalGroupsPolicy",
    "mounts": "volumeMounts",
    "propagation": "mountPropagation",
    "restart_rules": "restartPolicyRules",
    "post_start": "lifecycle.postStart",
    "pre_stop": "lifecycle.preStop",
    "stop_signal": "lifecycle.stopSignal",
    "handler": "",
    "headers": "httpHeaders",
    "termination_message_fallback_to_logs": "terminationMessagePolicy",
    "target_container": "targetContainerName",
    "devices": "volumeDevices",
    "resize_restarts": "resizePolicy",
    "config_error": "env",
    "host_ip": "hostIP",
    "servers": "nameservers",
}
_STEP = re.compile(r"(\w+)((?:\[[^\]]*\])?)")


def pool_path_to_pod_path(pod: Json, field: str) -> str:
    """Where in the Pod a pool's refusal points, for example
    "containers[0].readiness_probe" -> "spec.containers[0].readinessProbe".

    An unknown path comes back in camel case below spec: better a near miss than nothing.
    """
    if not field:
        return "spec"
    steps = _STEP.findall(field)
    first, index = steps[0]
    rest = steps[1:]
    if first == "network":
        if not rest:
            return "spec"
        name, number = rest[0]
        mapped = _NETWORK.get(name, _camel(name))
        return _join(["spec", mapped + number if mapped else "", *_inner(rest[1:])])
    if first == "volumes":
        return _volume(pod, index, rest)
    if first == "registry_credentials":
        # One Secret may give several credentials: their numbers say nothing here.
        return "spec.imagePullSecrets"
    if first in ("containers", "init_containers", "ephemeral_containers"):
        return _container(pod, f"{_camel(first)}{index}", rest)
    return _join([_POD.get(first, f"spec.{_camel(first)}") + index, *_inner(rest)])


def _container(pod: Json, container: str, rest: list[tuple[str, str]]) -> str:
    if rest and rest[0][0] == "env":
        # The pool counts variables from envFrom and Services too.
        return f"spec.{container}.env"
    if len(rest) > 1 and rest[0][0] == "mounts" and rest[1][0] == "sub_path":
        mount = f"spec.{container}.volumeMounts{rest[0][1]}"
        kind, _, number = container.partition("[")
        mounts = _item(_item(pod["spec"].get(kind), "[" + number).get("volumeMounts"), rest[0][1])
        return f"{mount}.subPathExpr" if mounts.get("subPathExpr") else f"{mount}.subPath"
    return _join([f"spec.{container}", *_inner(rest)])


def _volume(pod: Json, index: str, rest: list[tuple[str, str]]) -> str:
    volume = _item(mounted_volumes(pod), index)
    if not volume:
        return "spec.volumes"
    # The sandbox has only the mounted ones: other numbers.
    path = f"spec.volumes[{pod['spec']['volumes'].index(volume)}]"
    if rest and rest[0][0] == "files":
        # The files of a volume have other numbers than its items.
        kinds = [kind for kind in volume if kind != "name"]
        return f"{path}.{kinds[0]}" if kinds else path
    return _join([path, *_inner(rest)])


def _item(items: list[Json] | None, index: str) -> Json:
    number = index.strip("[]")
    if items and number.isdigit() and int(number) < len(items):
        return items[int(number)]
    return {}


def _inner(steps: list[tuple[str, str]]) -> list[str]:
    return [_INNER.get(name, _camel(name)) + index for name, index in steps]


def _join(parts: list[str]) -> str:
    return ".".join(part for part in parts if part)


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)
