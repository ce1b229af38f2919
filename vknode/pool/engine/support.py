"""What the engine cannot do yet, and which changes of a spec it can carry out.

What it cannot do is refused, never dropped: the caller turns each `FieldProblem`
into UNSUPPORTED_FIELD. What a *runtime* cannot do is the runtime's own list.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from vknode.pool.runtimes.facts import FieldProblem
from vknode.pool.v1 import spec_pb2

_UNSUPPORTED_MESSAGES = (
    "startup_probe",
    "readiness_probe",
    "liveness_probe",
    "post_start",
    "pre_stop",
)


def problems(spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
    """Every field of a new spec that asks for what the engine cannot do."""
    found: list[FieldProblem] = []
    for group, containers in _groups(spec):
        for index, container in enumerate(containers):
            path = f"{group}[{index}]"
            for name in _UNSUPPORTED_MESSAGES:
                if container.HasField(name):
                    found.append(
                        FieldProblem(f"{path}.{name}", f"{name} is not supported by this pool yet")
                    )
            if container.restart_rules:
                found.append(
                    FieldProblem(
                        f"{path}.restart_rules", "restart_rules are not supported by this pool yet"
                    )
                )
            if group == "init_containers" and (
                container.restart_policy == spec_pb2.RESTART_POLICY_ALWAYS
            ):
                found.append(
                    FieldProblem(
                        f"{path}.restart_policy",
                        "sidecars (init containers that always restart) are not supported by "
                        "this pool yet",
                    )
                )
    if spec.ephemeral_containers:
        found.append(
            FieldProblem(
                "ephemeral_containers",
                "ephemeral containers are not supported by this pool yet",
            )
        )
    return found


def update_problems(old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> list[FieldProblem]:
    """Every change from `old` to `new` that cannot be made while it runs.

    Environment, image and config_error of a container count for its next instance
    (a new image makes one at once); volume content, labels, annotations,
    credentials and the active deadline for the sandbox.
    """
    before, after = _fixed(old), _fixed(new)
    for index, container in enumerate(old.containers):
        # What depends on the missing environment was not known before.
        if container.config_error and index < len(after.containers):
            for side in (before.containers[index], after.containers[index]):
                side.ClearField("command")
                side.ClearField("args")
                for mount in side.mounts:
                    mount.ClearField("sub_path")
    return [
        FieldProblem(path, "cannot be changed while the sandbox exists; recreate the Pod")
        for path in _differences(before, after, "")
    ]


def reaches_runtime(old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> bool:
    """Whether Runtime.update_sandbox has to hear of the change."""
    if old.labels != new.labels or old.annotations != new.annotations:
        return True
    return list(old.volumes) != list(new.volumes)


def _groups(spec: spec_pb2.SandboxSpec) -> list[tuple[str, Any]]:
    return [
        ("init_containers", spec.init_containers),
        ("containers", spec.containers),
        ("ephemeral_containers", spec.ephemeral_containers),
    ]


def _fixed(spec: spec_pb2.SandboxSpec) -> spec_pb2.SandboxSpec:
    """The part that must not change."""
    kept = spec_pb2.SandboxSpec()
    kept.CopyFrom(spec)
    for name in (
        "generation",
        "labels",
        "annotations",
        "registry_credentials",
        "active_deadline_seconds",
        # What the tokens and addresses mean is settled when the sandbox is made;
        # the agent may choose other tokens each time it translates.
        "pod_ip_token",
        "pod_ips_token",
        "host_ips",
    ):
        kept.ClearField(name)
    for _, containers in _groups(kept):
        for container in containers:
            for name in ("env", "image", "config_error"):
                container.ClearField(name)
            # Other tokens each time they are made, though the command is the same.
            for words in (container.command, container.args):
                for token in filter(None, (spec.pod_ip_token, spec.pod_ips_token)):
                    words[:] = [word.replace(token, "\0") for word in words]
    for volume in kept.volumes:
        if volume.WhichOneof("source") == "files":
            volume.files.ClearField("files")
    return kept


def _differences(old: Any, new: Any, path: str) -> list[str]:
    """Paths in proto names where two messages of one type differ, outermost first."""
    found: list[str] = []
    for field in old.DESCRIPTOR.fields:
        here = f"{path}.{field.name}" if path else field.name
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.is_repeated:
            if _is_map(field):
                if dict(before) != dict(after):
                    found.append(here)
            elif field.message_type is not None and len(before) == len(after):
                for index, (one, other) in enumerate(zip(before, after, strict=True)):
                    found.extend(_differences(one, other, f"{here}[{index}]"))
            elif list(before) != list(after):
                found.append(here)
        elif field.message_type is not None:
            if old.HasField(field.name) != new.HasField(field.name):
                found.append(here)
            elif old.HasField(field.name):
                found.extend(_differences(before, after, here))
        elif before != after or (
            field.has_presence and old.HasField(field.name) != new.HasField(field.name)
        ):
            found.append(here)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)
