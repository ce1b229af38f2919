"""Which objects must be looked up before a Pod can be translated."""

from __future__ import annotations

from dataclasses import dataclass, field

from vknode.translate.facts import Json, TokenNeed
from vknode.translate.paths import all_containers, mounted_volumes

# As the API server defaults it.
DEFAULT_TOKEN_SECONDS = 3600


@dataclass(slots=True)
class Reference:
    """`optional` only if every use is; `used_by` are paths in the Pod."""

    name: str
    optional: bool
    used_by: tuple[str, ...]


@dataclass(slots=True)
class Needs:
    config_maps: dict[str, Reference] = field(default_factory=dict)
    secrets: dict[str, Reference] = field(default_factory=dict)
    tokens: tuple[TokenNeed, ...] = ()
    # Services of the Pod's namespace and default/kubernetes give variables.
    services: bool = True


def token_need(pod: Json, source: Json) -> TokenNeed:
    """The key under which `Resolved.tokens` has the token of a projection."""
    return TokenNeed(
        service_account=pod["spec"].get("serviceAccountName") or "default",
        audience=source.get("audience") or "",
        expiration_seconds=source.get("expirationSeconds") or DEFAULT_TOKEN_SECONDS,
        pod_name=pod["metadata"]["name"],
        pod_uid=pod["metadata"]["uid"],
    )


def needs(pod: Json) -> Needs:
    """Everything the Pod refers to; names in the order of the Pod."""
    found = Needs()
    tokens: dict[TokenNeed, None] = {}

    def add(into: dict[str, Reference], ref: Json, path: str, *, may_miss: bool = False) -> None:
        name = ref.get("name") or ref.get("secretName") or ""
        optional = may_miss or bool(ref.get("optional"))
        known = into.get(name)
        if known is None:
            into[name] = Reference(name, optional, (path,))
        else:
            known.optional = known.optional and optional
            known.used_by = (*known.used_by, path)

    for path, container in all_containers(pod):
        for index, source in enumerate(container.get("envFrom", ())):
            if source.get("configMapRef") is not None:
                add(found.config_maps, source["configMapRef"], f"{path}.envFrom[{index}]")
            elif source.get("secretRef") is not None:
                add(found.secrets, source["secretRef"], f"{path}.envFrom[{index}]")
        for index, variable in enumerate(container.get("env", ())):
            source = variable.get("valueFrom") or {}
            if source.get("configMapKeyRef") is not None:
                add(found.config_maps, source["configMapKeyRef"], f"{path}.env[{index}]")
            elif source.get("secretKeyRef") is not None:
                add(found.secrets, source["secretKeyRef"], f"{path}.env[{index}]")
    mounted = {volume["name"] for volume in mounted_volumes(pod)}
    for index, volume in enumerate(pod["spec"].get("volumes", ())):
        if volume["name"] not in mounted:
            continue
        path = f"spec.volumes[{index}]"
        if volume.get("configMap") is not None:
            add(found.config_maps, volume["configMap"], path)
        elif volume.get("secret") is not None:
            add(found.secrets, volume["secret"], path)
        for number, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            where = f"{path}.projected.sources[{number}]"
            if source.get("configMap") is not None:
                add(found.config_maps, source["configMap"], where)
            elif source.get("secret") is not None:
                add(found.secrets, source["secret"], where)
            elif source.get("serviceAccountToken") is not None:
                tokens[token_need(pod, source["serviceAccountToken"])] = None
    for index, ref in enumerate(pod["spec"].get("imagePullSecrets", ())):
        # A missing pull secret stops nothing by itself: the pull may do without.
        if ref.get("name"):
            add(found.secrets, ref, f"spec.imagePullSecrets[{index}]", may_miss=True)
    found.tokens = tuple(tokens)
    return found
