"""What Pods refer to, and what of it a sandbox has."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from tests.agent.world import World
from vknode.agent.app import Agent
from vknode.agent.metric_families import REFERENCES
from vknode.kube.errors import ApiError
from vknode.pool.v1 import spec_pb2


def mounts(*volumes: dict[str, Any], **container: Any) -> dict[str, Any]:
    """A Pod whose one container mounts these volumes, and no token."""
    where = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    return {
        "automountServiceAccountToken": False,
        "volumes": list(volumes),
        "container": {"volumeMounts": where, **container},
    }


def config_map(name: str = "c", volume: str = "v", **source: Any) -> dict[str, Any]:
    return {"name": volume, "configMap": {"name": name, **source}}


async def put(world: World, kind: str, name: str, immutable: bool = False, **data: str) -> None:
    """Makes a ConfigMap or Secret, or gives it other content."""
    await put_data(world, kind, name, data, immutable)


async def put_data(
    world: World, kind: str, name: str, data: dict[str, str], immutable: bool = False
) -> None:
    if kind == "secrets":
        data = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    body = {"metadata": {"name": name}, "data": data, "immutable": immutable}
    try:
        await world.client.create(world.path(kind=kind), msgspec.json.encode(body))
    except ApiError as error:
        assert error.is_already_exists
        await world.client.put(world.path(name, kind), msgspec.json.encode(body))


async def remove(world: World, kind: str, name: str) -> None:
    await world.client.delete(world.path(name, kind))


def files(spec: spec_pb2.SandboxSpec, volume: str = "v") -> dict[str, bytes]:
    (found,) = (one for one in spec.volumes if one.name == volume)
    return {file.path: file.content for file in found.files.files}


def env(spec: spec_pb2.SandboxSpec) -> dict[str, str]:
    return {variable.name: variable.value for variable in spec.containers[0].env}


async def started(world: World, name: str = "web", **spec: Any) -> str:
    uid = await world.create(name, **spec)
    await world.phase("Running", name)
    return uid


async def has(world: World, uid: str, content: dict[str, bytes], volume: str = "v") -> None:
    await world.until(lambda: files(world.pool.specs[uid], volume) == content)


def references(agent: Agent) -> dict[str, float]:
    """What the agent's metric says."""
    return {
        how: agent.metrics.value(REFERENCES, how) or 0.0
        for how in ("watched", "polled", "unwatched", "tokens")
    }


async def watched(world: World, agent: Agent, count: int) -> None:
    await world.until(lambda: references(agent)["watched"] == count)
