"""Pure translation between the Kubernetes API and the pool contract.

Pods are plain decoded JSON (`dict`, camelCase), as the API server stored them:
validated and defaulted. Nothing here does IO, reads a clock or logs.

Interfaces (import them from the named module):

fields
    check(pod, node: NodeFacts | None = None) -> list[Refusal]
        Every set field that cannot be honoured, in the order of the Pod. Empty: go on.
        Refusal(path: str, reason: str); str(refusal) is "path: reason".
    pool_path_to_pod_path(pod, field: str) -> str
        "containers[0].readiness_probe" -> "spec.containers[0].readinessProbe".
needs
    needs(pod) -> Needs
        Needs(config_maps: dict[str, Reference], secrets: dict[str, Reference],
              tokens: tuple[TokenNeed, ...], trust: tuple[TrustNeed, ...],
              certificates: tuple[CertificateNeed, ...], services: bool)
        Reference(name, optional: bool, used_by: tuple[str, ...], mounted, env, pull: bool);
        `optional` only if every use is. TokenNeed(service_account, audience,
        expiration_seconds, pod_name, pod_uid) is hashable and the key of
        Resolved.tokens; audience "" is the API server's own. `services`: whether
        sandbox_spec looks at Services for this Pod (those of the Pod's namespace, and
        default/kubernetes always).
    may_start_again(pod) -> bool: whether variables may be looked up again later.
facts
    NodeFacts(cell, host_ips, tenant="default", runtime_handler="", network="",
              cluster_domain="cluster.local", cluster_dns=(), host_dns=None,
              allocatable={})
    Missing(message, not_found=True): what a lookup gave instead of an object; `message`
        is the API server's own ('configmaps "x" not found').
    Resolved(config_maps: Mapping[str, dict | Missing], secrets: Mapping[str, dict | Missing],
             tokens: Mapping[TokenNeed, str | Missing], services: Sequence[dict] = (),
             trust: Mapping[TrustNeed, str | Missing],
             certificates: Mapping[CertificateNeed, Credential | Missing])
        `services`: Service objects of the Pod's namespace plus default/kubernetes.
    StatusFacts(now: str, host_ips: Sequence[str]); `now` by `rfc3339(seconds)`.
spec
    sandbox_spec(pod, resolved: Resolved, node: NodeFacts, *, runs=False)
            -> SandboxSpec | VolumeNotReady
        Call check() first. VolumeNotReady(volume, message): message is a kubelet's for
        the FailedMount event; try again when the missing object may be there. For a Pod
        that `runs` such a volume has `keep`, with that message, and the rest counts.
        Raises LookupError if something that needs() names is not in `resolved` at all.
credentials
    registry_credentials(pod, resolved) -> (list[RegistryCredential], list[str])
        The second are warnings for an event FailedToRetrieveImagePullSecret.
dns
    missing_cluster_dns(pod, node) -> bool: worth an event MissingClusterDNS.
status
    pod_status(pod, sandbox: Sandbox | None, facts, old=None) -> dict
        JSON-ready PodStatus. `old`: the status last known to be written (default: the
        Pod's own). Without a sandbox: waiting for one. It is never behind what was
        reported: a Pod that was Running or terminal does not become Pending.
    waiting_status(pod, facts, reason="ContainerCreating", message="", old=None) -> dict
    ended_status(pod, facts, old=None) -> dict
        The last status of a Pod that goes: Failed where it has not ended otherwise.
    rejected_status(pod, reason, message, facts, old=None) -> dict
        Phase Failed, as a kubelet's admission leaves it: no container ever existed.
    lost_status(pod, facts, reason="SandboxLost", message=..., old=None) -> dict
        The pool no longer has the sandbox (see the module for why this is Failed). Where
        a last Sandbox is known (a `gone` entry), pass old=pod_status(pod, last, facts).
patch
    status_patch(uid, old_status, new_status) -> bytes | None
        Body for PATCH /status with Content-Type application/strategic-merge-patch+json
        (STATUS_PATCH_TYPE); None when nothing changed.
qos.qos_class(pod) -> str;  quantity.Quantity: parse, str, +, -, compare, scaled values.
"""
