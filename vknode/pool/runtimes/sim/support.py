"""What a spec may ask of the simulation."""

from __future__ import annotations

from collections.abc import Collection

from vknode.pool.runtimes.facts import FieldProblem
from vknode.pool.runtimes.sim.behaviour import (
    PREFIX,
    BehaviourError,
    annotation_words,
    check_behaviour,
)
from vknode.pool.v1 import spec_pb2


def problems(spec: spec_pb2.SandboxSpec, networks: Collection[str]) -> list[FieldProblem]:
    """Every field that the simulation cannot honour, its own annotations included."""
    names = [""] + [
        container.name
        for group in (spec.init_containers, spec.containers, spec.ephemeral_containers)
        for container in group
    ]
    found: dict[str, FieldProblem] = {}
    network = spec.network.name
    if network and network not in networks:
        message = f"the simulation has no network {network!r}"
        found["network.name"] = FieldProblem("network.name", message)
    for key in spec.annotations:
        if key.startswith(PREFIX):
            _, dot, target = key[len(PREFIX) :].partition(".")
            if dot and target not in names:
                path = f'annotations["{key}"]'
                found[path] = FieldProblem(path, f"no container is named {target!r}")
    for name in names:
        try:
            check_behaviour(annotation_words(spec, name))
        except BehaviourError as error:
            key = f"{PREFIX}{error.key}"
            if f"{key}.{name}" in spec.annotations:
                key = f"{key}.{name}"
            path = f'annotations["{key}"]'
            found[path] = FieldProblem(path, str(error))
    return list(found.values())
