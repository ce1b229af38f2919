"""Containers of a Pod as the contract wants them."""

from __future__ import annotations

from collections.abc import Mapping

from vknode.pool.v1 import spec_pb2
from vknode.translate.env import container_env
from vknode.translate.expansion import expand, expand_with
from vknode.translate.facts import Json, NodeFacts, Resolved
from vknode.translate.handlers import handler, probe
from vknode.translate.security import container_security
from vknode.translate.volumes import pull_policy

RESTART = {
    None: spec_pb2.RESTART_POLICY_UNSPECIFIED,
    "": spec_pb2.RESTART_POLICY_UNSPECIFIED,
    "Always": spec_pb2.RESTART_POLICY_ALWAYS,
    "OnFailure": spec_pb2.RESTART_POLICY_ON_FAILURE,
    "Never": spec_pb2.RESTART_POLICY_NEVER,
}
_ACTIONS = {
    "Restart": spec_pb2.RestartRule.ACTION_RESTART,
    "RestartAllContainers": spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS,
}
_PROPAGATION = {
    None: spec_pb2.PROPAGATION_UNSPECIFIED,
    "None": spec_pb2.PROPAGATION_UNSPECIFIED,
    "HostToContainer": spec_pb2.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": spec_pb2.PROPAGATION_BIDIRECTIONAL,
}


def container_spec(
    pod: Json, source: Json, resolved: Resolved, node: NodeFacts, services: Mapping[str, str]
) -> spec_pb2.Container:
    """One container; what cannot be resolved is told in `config_error`."""
    environment = container_env(pod, source, resolved, node, services)
    env, error = environment.known, environment.error
    result = spec_pb2.Container(
        name=source["name"],
        image=source.get("image", ""),
        image_pull_policy=pull_policy(source.get("imagePullPolicy")),
        command=[expand(word, env) for word in source.get("command") or ()],
        args=[expand(word, env) for word in source.get("args") or ()],
        working_dir=source.get("workingDir") or "",
        env=environment.entries,
        security=container_security(pod, source, seccomp_default=node.seccomp_default),
        tty=bool(source.get("tty")),
        stdin=bool(source.get("stdin")),
        stdin_once=bool(source.get("stdinOnce")),
        restart_policy=RESTART[source.get("restartPolicy")],
        stop_signal=(source.get("lifecycle") or {}).get("stopSignal") or "",
        termination_message_path=source.get("terminationMessagePath") or "",
        termination_message_fallback_to_logs=(
            source.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        ),
        target_container=source.get("targetContainerName") or "",
        resize_restarts=[
            policy["resourceName"]
            for policy in source.get("resizePolicy") or ()
            if policy.get("restartPolicy") == "RestartContainer"
        ],
    )
    for port in source.get("ports") or ():
        result.ports.add(
            name=port.get("name") or "",
            container_port=port["containerPort"],
            host_port=port.get("hostPort") or 0,
            host_ip=port.get("hostIP") or "",
            protocol=port.get("protocol") or "TCP",
        )
    add_resources(result.resources, source.get("resources"), node)
    for rule in source.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        result.restart_rules.add(
            action=_ACTIONS[rule["action"]],
            exit_codes=codes.get("values") or (),
            not_in=codes.get("operator") == "NotIn",
        )
    _add_handlers(result, source)
    for mount in source.get("volumeMounts") or ():
        sub_path, problem = _sub_path(mount, env)
        # An environment that could not be resolved makes every expansion fail as well;
        # only the first cause helps.
        error = error or problem
        result.mounts.add(
            volume=mount["name"],
            path=mount["mountPath"],
            read_only=bool(mount.get("readOnly")),
            sub_path=sub_path,
            propagation=_PROPAGATION[mount.get("mountPropagation")],
            recursive_read_only=recursive_read_only(mount),
        )
    result.config_error = error
    _drop_unused_tokens(result)
    return result


def _drop_unused_tokens(container: spec_pb2.Container) -> None:
    """A pool has to look for those only that occur."""
    if not any(entry.HasField("file") for entry in container.env):
        return
    texts = [*container.command, *container.args]
    texts += [mount.sub_path for mount in container.mounts]
    texts += [text for entry in container.env for text in (entry.value, entry.file.otherwise)]
    for entry in container.env:
        file = entry.file
        if file.token and not any(file.token in text for text in texts):
            file.ClearField("token")
            file.ClearField("otherwise")


def add_resources(target: spec_pb2.Resources, source: Json | None, node: NodeFacts) -> None:
    names = node.extended_resources
    for kind in ("requests", "limits"):
        for name, amount in ((source or {}).get(kind) or {}).items():
            getattr(target, kind)[names.get(name, name)] = str(amount)


def recursive_read_only(mount: Json) -> bool:
    """Only "Enabled": for "IfPossible" one would have to know what the pool can do."""
    return bool(mount.get("readOnly")) and mount.get("recursiveReadOnly") == "Enabled"


def _add_handlers(result: spec_pb2.Container, source: Json) -> None:
    lifecycle = source.get("lifecycle") or {}
    if source.get("startupProbe"):
        result.startup_probe.CopyFrom(probe(source["startupProbe"], source))
    if source.get("readinessProbe"):
        result.readiness_probe.CopyFrom(probe(source["readinessProbe"], source))
    if source.get("livenessProbe"):
        result.liveness_probe.CopyFrom(probe(source["livenessProbe"], source))
    if lifecycle.get("postStart"):
        result.post_start.CopyFrom(handler(lifecycle["postStart"], source))
    if lifecycle.get("preStop"):
        result.pre_stop.CopyFrom(handler(lifecycle["preStop"], source))


def _sub_path(mount: Json, env: Mapping[str, str]) -> tuple[str, str]:
    """The path with variables expanded, and why that failed in a kubelet's words."""
    path = mount.get("subPath") or ""
    if mount.get("subPathExpr"):
        missing: set[str] = set()

        def lookup(name: str) -> str:
            if not env.get(name):
                missing.add(name)
            return env.get(name, "")

        path = expand_with(mount["subPathExpr"], lookup)
        if missing:
            return "", f"missing value for {', '.join(sorted(missing))}"
    if path.startswith("/"):
        return "", f"error SubPath `{path}` must not be an absolute path"
    if ".." in path.split("/"):
        return "", f"unable to provision SubPath `{path}`: must not contain '..'"
    return path, ""
