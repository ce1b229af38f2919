"""What the engine cannot do yet, and which changes of a spec its runtime has to hear of.

What it cannot do is refused, never dropped: the caller turns each `FieldProblem`
into UNSUPPORTED_FIELD. What a *runtime* cannot do is the runtime's own list.
"""

from __future__ import annotations

from typing import Any

from vknode.pool.runtimes.facts import FieldProblem
from vknode.pool.v1 import spec_pb2


def problems(spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
    """Every field of a new spec that asks for what the engine cannot do."""
    found: list[FieldProblem] = []
    for group, containers in _groups(spec):
        for index, container in enumerate(containers):
            for name, wrong in (
                ("post_start", ("tcp_socket", "grpc")),
                ("pre_stop", ("tcp_socket", "grpc")),
            ):
                action = getattr(container, name).WhichOneof("action")
                if container.HasField(name) and (action is None or action in wrong):
                    text = "a hook runs a command (exec), asks by HTTP (http_get) or sleeps"
                    found.append(FieldProblem(f"{group}[{index}].{name}", text))
            for name in ("startup_probe", "readiness_probe", "liveness_probe"):
                action = getattr(container, name).handler.WhichOneof("action")
                if container.HasField(name) and action in (None, "sleep"):
                    text = "a probe asks by exec, http_get, tcp_socket or grpc"
                    found.append(FieldProblem(f"{group}[{index}].{name}.handler", text))
    return found


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
