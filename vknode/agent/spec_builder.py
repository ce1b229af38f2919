"""From a Pod to the SandboxSpec that a pool gets: check, fetch what is named, translate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vknode.agent.admission import UNSUPPORTED, Rejection
from vknode.agent.pod_record import Placement
from vknode.agent.references import References
from vknode.pool.v1 import spec_pb2
from vknode.translate.credentials import registry_credentials
from vknode.translate.dns import missing_cluster_dns
from vknode.translate.facts import Missing, NodeFacts
from vknode.translate.fields import check
from vknode.translate.needs import needs
from vknode.translate.spec import VolumeNotReady, sandbox_spec


@dataclass(frozen=True, slots=True)
class Built:
    """`config_errors`: containers whose environment cannot be resolved yet, with the reason.
    `pull_warnings`: what is wrong with image pull secrets; it stops nothing by itself.
    `lacks_dns`: the Pod wants the cluster's DNS, and the configuration names none."""

    spec: spec_pb2.SandboxSpec
    config_errors: tuple[tuple[str, str], ...]
    pull_warnings: tuple[str, ...] = ()
    lacks_dns: bool = False


@dataclass(frozen=True, slots=True)
class NotReady:
    """Something named is missing; the event's reason and text are a kubelet's."""

    reason: str
    message: str


class SpecBuilder:
    def __init__(self, references: References) -> None:
        self._references = references

    async def build(self, pod: dict[str, Any], place: Placement) -> Built | Rejection | NotReady:
        """Raises `KubeError` where the API server cannot answer."""
        facts = place.facts
        refusals = check(pod, facts)
        if refusals:
            return Rejection(UNSUPPORTED, "; ".join(str(refusal) for refusal in refusals))
        runtime_class = pod["spec"].get("runtimeClassName")
        if runtime_class:
            found = await self._with_handler(runtime_class, facts, place.node)
            if isinstance(found, NotReady):
                return found
            facts = found
        namespace = pod["metadata"]["namespace"]
        resolved = await self._references.fetch(namespace, needs(pod), place.node)
        spec = sandbox_spec(pod, resolved, facts)
        if isinstance(spec, VolumeNotReady):
            return NotReady("FailedMount", spec.message)
        errors = tuple(
            (container.name, container.config_error)
            for containers in (spec.init_containers, spec.containers, spec.ephemeral_containers)
            for container in containers
            if container.config_error
        )
        warnings: list[str] = []
        if pod["spec"].get("imagePullSecrets"):
            _, warnings = registry_credentials(pod, resolved)
        return Built(spec, errors, tuple(warnings), missing_cluster_dns(pod, facts))

    async def _with_handler(self, name: str, facts: NodeFacts, node: str) -> NodeFacts | NotReady:
        handler = await self._references.runtime_handler(name, node)
        if isinstance(handler, Missing):
            return NotReady(
                "FailedCreatePodSandBox",
                f"Failed to create pod sandbox: failed to get sandbox runtime: {handler.message}",
            )
        return dataclasses.replace(facts, runtime_handler=handler)
