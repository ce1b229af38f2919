"""What a pool says where it does not do what it was asked for."""

from __future__ import annotations

from vknode.pool.engine import support
from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.errors import NOT_FOUND, REFUSED, UNSUPPORTED_FIELD, PoolFailure
from vknode.pool.runtimes.base import ContainerRef, FieldProblem, Runtime
from vknode.pool.v1 import spec_pb2, status_pb2


def problems(runtime: Runtime, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
    """What neither the engine nor the runtime can honour."""
    return [*support.problems(spec), *runtime.problems(spec)]


def new_problems(
    runtime: Runtime, before: spec_pb2.SandboxSpec, wanted: spec_pb2.SandboxSpec
) -> list[FieldProblem]:
    """What holds already is no question: the pool's own options may have changed since."""
    accepted = problems(runtime, before)
    return [one for one in problems(runtime, wanted) if one not in accepted]


def infeasible(new: list[FieldProblem]) -> tuple[str, str] | None:
    """Reason and message of a resize that never can be: resources that cannot be honoured are
    no reason to refuse all the rest of an update."""
    message = next((one.message for one in new if one.of_resources), None)
    return None if message is None else ("Infeasible", message)


def instance_of(machine: SandboxMachine, container: str, previous: bool) -> ContainerRef:
    """The newest instance of a container, or the one before it. Raises PoolFailure: NOT_FOUND
    for an unknown container or a missing previous instance, wrong state before the first."""
    name = machine.spec.name
    try:
        ref = machine.instance(container, previous=previous)
    except KeyError:
        raise PoolFailure(
            NOT_FOUND, f"container {container!r} is not in sandbox {name!r}"
        ) from None
    if ref is None and previous:
        raise PoolFailure(
            NOT_FOUND, f'previous terminated container "{container}" in pod "{name}" not found'
        )
    if ref is None:
        raise PoolFailure(
            REFUSED,
            f'container "{container}" in pod "{name}" is waiting to start: '
            f"{_waiting_reason(machine.status(), container)}",
            wrong_state=True,
        )
    return ref


def _waiting_reason(status: status_pb2.Sandbox, container: str) -> str:
    for group in (status.init_containers, status.containers, status.ephemeral_containers):
        for one in group:
            if one.name == container:
                return one.state.waiting.reason or "ContainerCreating"
    return "ContainerCreating"


def refuse(problems: list[FieldProblem]) -> None:
    """Raises PoolFailure(UNSUPPORTED_FIELD) for the first; the rest is in the message."""
    if problems:
        message = problems[0].message
        if len(problems) > 1:
            message += " (also: " + ", ".join(p.path for p in problems[1:6]) + ")"
        raise PoolFailure(UNSUPPORTED_FIELD, message, field=problems[0].path)
