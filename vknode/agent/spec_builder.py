"""From a Pod to the SandboxSpec that a pool gets: check, fetch what is named, translate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vknode.agent.admission import UNSUPPORTED, Rejection
from vknode.agent.pod_record import Placement
from vknode.agent.privileges import Privileges
from vknode.agent.privileges import rejection as not_allowed
from vknode.agent.reference_index import RefKey, Uses
from vknode.agent.references import ROOT_CA, References
from vknode.pool.v1 import spec_pb2
from vknode.translate.credentials import registry_credentials
from vknode.translate.dns import missing_cluster_dns
from vknode.translate.facts import Missing, NodeFacts, Resolved
from vknode.translate.fields import Refusal, check
from vknode.translate.needs import Needs, may_start_again, needs
from vknode.translate.privileges import Closed, closed
from vknode.translate.spec import VolumeNotReady, sandbox_spec

_NOTHING = Uses()
_DEBUG = re.compile(r"spec\.ephemeralContainers\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Built:
    """`config_errors`: containers whose environment cannot be resolved yet, with the reason.
    `unmounted`: of a Pod that runs, why volumes stay as they are (texts of FailedMount events).
    `pull_warnings`: what is wrong with image pull secrets; it stops nothing by itself.
    `lacks_dns`: the Pod wants the cluster's DNS, and the configuration names none.
    `uses`: what it was made from."""

    spec: spec_pb2.SandboxSpec
    config_errors: tuple[tuple[str, str], ...]
    uses: Uses
    unmounted: tuple[str, ...] = ()
    pull_warnings: tuple[str, ...] = ()
    lacks_dns: bool = False


@dataclass(frozen=True, slots=True)
class NotReady:
    """Something named is missing; the event's reason and text are a kubelet's."""

    reason: str
    message: str
    uses: Uses = _NOTHING


class SpecBuilder:
    def __init__(self, references: References, privileges: Privileges) -> None:
        self._references = references
        self._privileges = privileges

    async def build(self, pod: dict[str, Any], place: Placement) -> Built | Rejection | NotReady:
        """For a new sandbox. Raises `KubeError` where the API server cannot answer."""
        facts, too_much = self._with_privileges(pod, place)
        refusals = check(pod, facts)
        if refusals or too_much:
            return _rejection(refusals, too_much, pod, place)
        runtime_class = pod["spec"].get("runtimeClassName")
        if runtime_class:
            found = await self._with_handler(runtime_class, facts, place.node)
            if isinstance(found, NotReady):
                return found
            facts = found
        namespace = pod["metadata"]["namespace"]
        need = needs(pod)
        uid = pod["metadata"]["uid"]
        resolved = await self._references.fetch(namespace, need, place.node, uid)
        spec = sandbox_spec(pod, resolved, facts)
        if isinstance(spec, VolumeNotReady):
            uses = _uses(pod, need, resolved, in_want=True)
            return NotReady("FailedMount", spec.message, uses)
        return _built(pod, spec, resolved, need, facts, lacks_image=False)

    async def build_again(
        self,
        pod: dict[str, Any],
        place: Placement,
        debug: frozenset[str],
        *,
        lacks_image: bool = False,
    ) -> Built | Rejection:
        """For a sandbox that is there, with these debug containers. `lacks_image`: it cannot get
        an image, so pull secrets matter. What it was made with is not
        judged again: whatever became of that, the Pod runs. Without its RuntimeClass nobody here
        knows its handler any more; the pool does. Raises `KubeError` as `build`."""
        facts, too_much = self._with_privileges(pod, place)

        def is_new(path: str) -> bool:
            return _is_of_new_debug_container(path, pod, debug)

        refusals = [one for one in check(pod, facts) if is_new(one.path)]
        too_much = [one for one in too_much if is_new(one.path)]
        if refusals or too_much:
            return _rejection(refusals, too_much, pod, place)
        runtime_class = pod["spec"].get("runtimeClassName")
        if runtime_class:
            found = await self._with_handler(runtime_class, facts, place.node)
            if not isinstance(found, NotReady):
                facts = found
        need = needs(pod)
        meta = pod["metadata"]
        resolved = await self._references.fetch(meta["namespace"], need, place.node, meta["uid"])
        spec = sandbox_spec(pod, resolved, facts, runs=True)
        assert not isinstance(spec, VolumeNotReady)
        return _built(pod, spec, resolved, need, facts, lacks_image=lacks_image)

    def _with_privileges(
        self, pod: dict[str, Any], place: Placement
    ) -> tuple[NodeFacts, list[Closed]]:
        """The facts with what the Pod may have, and what it asks for beyond that."""
        allowed = self._privileges.allowed(
            pod["metadata"]["namespace"], place.link.name, place.facts.cell
        )
        facts = dataclasses.replace(
            place.facts,
            host_paths=allowed.host_paths,
            seccomp_default=not allowed.unconfined_by_default,
        )
        return facts, closed(pod, allowed)

    async def _with_handler(self, name: str, facts: NodeFacts, node: str) -> NodeFacts | NotReady:
        handler = await self._references.runtime_handler(name, node)
        if isinstance(handler, Missing):
            return NotReady(
                "FailedCreatePodSandBox",
                f"Failed to create pod sandbox: failed to get sandbox runtime: {handler.message}",
            )
        return dataclasses.replace(facts, runtime_handler=handler)


def _built(
    pod: dict[str, Any],
    spec: spec_pb2.SandboxSpec,
    resolved: Resolved,
    need: Needs,
    facts: NodeFacts,
    *,
    lacks_image: bool,
) -> Built:
    errors = tuple(
        (container.name, container.config_error)
        for containers in (spec.init_containers, spec.containers, spec.ephemeral_containers)
        for container in containers
        if container.config_error
    )
    warnings: list[str] = []
    if pod["spec"].get("imagePullSecrets"):
        _, warnings = registry_credentials(pod, resolved)
    return Built(
        spec,
        errors,
        _uses(pod, need, resolved, in_want=bool(errors), lacks_image=lacks_image),
        tuple(volume.keep.reason for volume in spec.volumes if volume.HasField("keep")),
        tuple(warnings),
        missing_cluster_dns(pod, facts),
    )


def _rejection(
    refusals: Sequence[Refusal], too_much: Sequence[Closed], pod: dict[str, Any], place: Placement
) -> Rejection:
    """What can never be honoured comes first: no configuration helps there."""
    if refusals:
        return Rejection(UNSUPPORTED, "; ".join(str(refusal) for refusal in refusals))
    return not_allowed(too_much, pod["metadata"]["namespace"], place.facts.cell)


def _is_of_new_debug_container(path: str, pod: dict[str, Any], known: frozenset[str]) -> bool:
    match = _DEBUG.match(path)
    if match is None:
        return False
    return pod["spec"]["ephemeralContainers"][int(match[1])]["name"] not in known


def _uses(
    pod: dict[str, Any],
    need: Needs,
    resolved: Resolved,
    *,
    in_want: bool,
    lacks_image: bool = False,
) -> Uses:
    """What shows in volumes; also variables' objects for a Pod that something is missing for
    (else they count for its restarts), and pull secrets for one without its image."""
    namespace = pod["metadata"]["namespace"]
    restarts = may_start_again(pod)
    given: dict[RefKey, str] = {}
    for_restarts: dict[RefKey, str] = {}
    for resource, references, objects in (
        ("configmaps", need.config_maps, resolved.config_maps),
        ("secrets", need.secrets, resolved.secrets),
    ):
        for name, reference in references.items():
            if name == ROOT_CA and resource == "configmaps":
                continue
            if reference.mounted or (reference.env and in_want) or (reference.pull and lacks_image):
                uses = given
            elif reference.env and restarts:
                uses = for_restarts
            else:
                continue
            found = objects[name]
            if isinstance(found, Missing):
                uses[RefKey(resource, namespace, name)] = ""
            elif found.get("immutable") is not True:
                version = (found.get("metadata") or {}).get("resourceVersion", "")
                uses[RefKey(resource, namespace, name)] = version
    root_ca = need.config_maps.get(ROOT_CA)
    mounts_root_ca = root_ca is not None and root_ca.mounted
    return Uses(given, for_restarts, mounts_root_ca, need.trust, bool(need.certificates))
