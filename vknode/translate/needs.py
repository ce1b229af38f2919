"""Which objects must be looked up before a Pod can be translated."""

from __future__ import annotations

from dataclasses import dataclass, field

from vknode.translate.facts import CertificateNeed, Json, TokenNeed, TrustNeed
from vknode.translate.paths import all_containers, mounted_volumes
from vknode.translate.trust import trust_need

# As the API server defaults it.
DEFAULT_TOKEN_SECONDS = 3600


@dataclass(slots=True)
class Reference:
    """`optional` only if every use is; `used_by` are paths in the Pod; `mounted`: some volume
    shows it, `env`: some variable holds it, `pull`: it opens registries."""

    name: str
    optional: bool
    used_by: tuple[str, ...]
    mounted: bool = False
    env: bool = False
    pull: bool = False


@dataclass(slots=True)
class Needs:
    config_maps: dict[str, Reference] = field(default_factory=dict)
    secrets: dict[str, Reference] = field(default_factory=dict)
    tokens: tuple[TokenNeed, ...] = ()
    trust: tuple[TrustNeed, ...] = ()
    certificates: tuple[CertificateNeed, ...] = ()
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


def certificate_need(pod: Json, volume: str, index: int, source: Json) -> CertificateNeed:
    """The key under which `Resolved.certificates` has what a projection shows; `index` is that of
    the source in its volume."""
    return CertificateNeed(
        volume=volume,
        index=index,
        signer=source.get("signerName") or "",
        key_type=source.get("keyType") or "",
        max_expiration_seconds=source.get("maxExpirationSeconds"),
        annotations=tuple(sorted((source.get("userAnnotations") or {}).items())),
        service_account=pod["spec"].get("serviceAccountName") or "default",
        pod_name=pod["metadata"]["name"],
        pod_uid=pod["metadata"]["uid"],
    )


def needs(pod: Json) -> Needs:
    """Everything the Pod refers to; names in the order of the Pod."""
    found = Needs()
    tokens: dict[TokenNeed, None] = {}
    trust: dict[TrustNeed, None] = {}

    def add(
        into: dict[str, Reference],
        ref: Json,
        path: str,
        *,
        mounted: bool = False,
        env: bool = False,
        pull: bool = False,
    ) -> None:
        name = ref.get("name") or ref.get("secretName") or ""
        # A missing pull secret stops nothing by itself: the pull may do without.
        optional = bool(ref.get("optional")) or not (mounted or env)
        known = into.get(name)
        if known is None:
            into[name] = Reference(name, optional, (path,), mounted, env, pull)
        else:
            known.optional = known.optional and optional
            known.used_by = (*known.used_by, path)
            known.mounted = known.mounted or mounted
            known.env = known.env or env
            known.pull = known.pull or pull

    for path, container in all_containers(pod):
        for index, source in enumerate(container.get("envFrom", ())):
            if source.get("configMapRef") is not None:
                add(found.config_maps, source["configMapRef"], f"{path}.envFrom[{index}]", env=True)
            elif source.get("secretRef") is not None:
                add(found.secrets, source["secretRef"], f"{path}.envFrom[{index}]", env=True)
        for index, variable in enumerate(container.get("env", ())):
            source = variable.get("valueFrom") or {}
            if source.get("configMapKeyRef") is not None:
                add(found.config_maps, source["configMapKeyRef"], f"{path}.env[{index}]", env=True)
            elif source.get("secretKeyRef") is not None:
                add(found.secrets, source["secretKeyRef"], f"{path}.env[{index}]", env=True)
    mounted = {volume["name"] for volume in mounted_volumes(pod)}
    for index, volume in enumerate(pod["spec"].get("volumes", ())):
        if volume["name"] not in mounted:
            continue
        path = f"spec.volumes[{index}]"
        if volume.get("configMap") is not None:
            add(found.config_maps, volume["configMap"], path, mounted=True)
        elif volume.get("secret") is not None:
            add(found.secrets, volume["secret"], path, mounted=True)
        for number, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
            where = f"{path}.projected.sources[{number}]"
            if source.get("configMap") is not None:
                add(found.config_maps, source["configMap"], where, mounted=True)
            elif source.get("secret") is not None:
                add(found.secrets, source["secret"], where, mounted=True)
            elif source.get("serviceAccountToken") is not None:
                tokens[token_need(pod, source["serviceAccountToken"])] = None
            elif source.get("clusterTrustBundle") is not None:
                trust[trust_need(source["clusterTrustBundle"])] = None
            elif source.get("podCertificate") is not None:
                need = certificate_need(pod, volume["name"], number, source["podCertificate"])
                found.certificates = (*found.certificates, need)
    for index, ref in enumerate(pod["spec"].get("imagePullSecrets", ())):
        if ref.get("name"):
            add(found.secrets, ref, f"spec.imagePullSecrets[{index}]", pull=True)
    found.tokens = tuple(tokens)
    found.trust = tuple(trust)
    return found


def may_start_again(pod: Json) -> bool:
    """Whether some container may be started after the Pod's start: once more, or after an init
    container. Then its variables are looked up again."""
    spec = pod["spec"]
    return (
        spec.get("restartPolicy") != "Never"
        or bool(spec.get("initContainers"))
        or any(one.get("restartPolicy") for one in spec["containers"])
    )
