"""The one table of what is supported: every field of a PodSpec (k8s.io/api v0.37) and its fate.

`fields.py` reads it, checks Pods by it and prints it as docs/pod-fields.md. In a path
`{containers}` stands for containers, initContainers and ephemeralContainers, `{probe}`
for the three probes, `{hook}` for the two hooks. A row covers everything below its path
that has no row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    # Honoured: by the agent, or by every pool that keeps to the contract.
    SUPPORTED = "supported"
    # Carried by the contract; a pool that cannot do it refuses the Pod with this field's path.
    POOL = "pool"
    # Never honoured: the Pod is rejected with this field's path.
    REFUSED = "refused"
    # Read by the scheduler, the API server or controllers; a kubelet ignores it as well.
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Row:
    """`harmless` are values that a refused field may have: they ask for nothing.

    `cri` is what the pool's runtime `cri` does with it; empty: it honours it.
    """

    path: str
    verdict: Verdict
    note: str = ""
    harmless: tuple[object, ...] = ()
    cri: str = ""


def _ok(path: str, note: str = "") -> Row:
    return Row(path, Verdict.SUPPORTED, note)


def _pool(path: str, note: str = "", cri: str = "") -> Row:
    return Row(path, Verdict.POOL, note, cri=cri)


def _no(path: str, reason: str, *harmless: object) -> Row:
    return Row(path, Verdict.REFUSED, reason, harmless)


def _else(path: str, reader: str) -> Row:
    return Row(path, Verdict.IGNORED, reader)


_SCHEDULER = "read by the scheduler"
_NO_STORAGE = (
    "persistent storage is not supported; use emptyDir, configMap, secret, downwardAPI, "
    "projected, hostPath or image"
)
_REMOVED = "this volume type no longer works in Kubernetes itself"
_WINDOWS = "only Linux is supported"
_ON_WINDOWS = "read by kubelets on Windows"
_NO_DRA = "dynamic resource allocation is not supported"
_SELINUX = "ignored without SELinux on the host; with it only types for containers, and levels"
_OPENED = "closed unless `privileges` of the agent's configuration open it"
_SECCOMP = "Localhost only where the pool's owner names a folder of profiles"
_SECCOMP_NOTE = f"RuntimeDefault where nothing is said; Unconfined is {_OPENED}"
_APP_ARMOR = "needs AppArmor on the host"
_APP_ARMOR_NOTE = f"Unconfined is {_OPENED}"
_C = "spec.{containers}[]"
_P = f"{_C}.{{probe}}"
_H = f"{_C}.lifecycle.{{hook}}"


def _key_refs(parent: str) -> tuple[Row, ...]:
    return (
        _ok(f"{parent}.name"),
        _ok(f"{parent}.items[].key"),
        _ok(f"{parent}.items[].path"),
        _ok(f"{parent}.items[].mode"),
        _ok(f"{parent}.items[].user"),
        _ok(f"{parent}.optional"),
    )


def _downward(parent: str) -> tuple[Row, ...]:
    return (
        _ok(f"{parent}.items[].path"),
        _ok(f"{parent}.items[].fieldRef.apiVersion"),
        _ok(f"{parent}.items[].fieldRef.fieldPath"),
        _ok(f"{parent}.items[].resourceFieldRef.containerName"),
        _ok(f"{parent}.items[].resourceFieldRef.resource"),
        _ok(f"{parent}.items[].resourceFieldRef.divisor"),
        _ok(f"{parent}.items[].mode"),
        _ok(f"{parent}.items[].user"),
    )


TABLE: tuple[Row, ...] = (
    # The Pod as a whole.
    _ok("spec.restartPolicy"),
    _ok("spec.terminationGracePeriodSeconds"),
    _ok("spec.activeDeadlineSeconds"),
    _ok("spec.serviceAccountName"),
    _ok("spec.serviceAccount", "the old name of serviceAccountName"),
    _else("spec.automountServiceAccountToken", "the API server's admission adds the volume"),
    _ok("spec.nodeName"),
    _ok("spec.imagePullSecrets[].name"),
    _ok("spec.enableServiceLinks"),
    _ok("spec.readinessGates[].conditionType"),
    _ok("spec.priority"),
    _pool("spec.runtimeClassName", cri="handlers that the container runtime has"),
    _ok("spec.overhead"),
    _pool("spec.shareProcessNamespace"),
    _pool("spec.hostNetwork", _OPENED, cri="refused unless the pool is started to allow it"),
    _pool("spec.hostPID", _OPENED, cri="refused unless the pool is started to allow it"),
    _pool("spec.hostIPC", _OPENED, cri="refused unless the pool is started to allow it"),
    _no("spec.hostUsers", "user namespaces are not supported; leave hostUsers out", True),
    _no("spec.os.name", _WINDOWS, "linux"),
    _pool(
        "spec.resources.limits",
        "for the whole Pod",
        "cpu and memory; where the runtime makes no control groups itself (systemd), only what "
        "follows from the containers' own limits",
    ),
    _pool("spec.resources.requests", "for the whole Pod"),
    _no("spec.resources.claims", _NO_DRA),
    _no("spec.resourceClaims", _NO_DRA),
    # Read by others.
    _ok("spec.affinity", f"{_SCHEDULER}; what nodes require is checked again at admission"),
    _ok("spec.nodeSelector", f"{_SCHEDULER}; checked again at admission"),
    _else("spec.schedulerName", _SCHEDULER),
    _ok(
        "spec.tolerations",
        "read by the scheduler and the taint eviction controller; those of NoExecute are "
        "checked again at admission",
    ),
    _else("spec.topologySpreadConstraints", _SCHEDULER),
    _else("spec.schedulingGates[].name", _SCHEDULER),
    _else("spec.schedulingGroup.podGroupName", _SCHEDULER),
    _else("spec.priorityClassName", "the API server's admission turns it into priority"),
    _else("spec.preemptionPolicy", _SCHEDULER),
    _else("spec.evictionResponders", "read by the eviction request controllers"),
    # Names and resolution.
    _ok("spec.hostname"),
    _ok("spec.subdomain"),
    _ok("spec.hostnameOverride"),
    _ok("spec.setHostnameAsFQDN", "the name must fit into 64 characters"),
    _ok("spec.dnsPolicy", "ClusterFirst acts like Default where no cluster DNS is configured"),
    _ok("spec.dnsConfig.nameservers"),
    _ok("spec.dnsConfig.searches"),
    _ok("spec.dnsConfig.options[].name"),
    _ok("spec.dnsConfig.options[].value"),
    _ok("spec.hostAliases[].ip"),
    _ok("spec.hostAliases[].hostnames"),
    # Security of the Pod.
    _ok("spec.securityContext.runAsUser"),
    _ok("spec.securityContext.runAsGroup"),
    _ok("spec.securityContext.runAsNonRoot"),
    _ok("spec.securityContext.supplementalGroups"),
    _pool(
        "spec.securityContext.supplementalGroupsPolicy",
        cri="Strict needs containerd 2.0 or CRI-O 1.31",
    ),
    _ok("spec.securityContext.fsGroup"),
    _ok("spec.securityContext.fsGroupChangePolicy"),
    _pool(
        "spec.securityContext.sysctls[].name",
        f"others than a kubelet's safe ones are {_OPENED}",
        cri="the kubelet's safe ones; others by the pool's configuration",
    ),
    _pool("spec.securityContext.sysctls[].value"),
    _pool("spec.securityContext.seccompProfile.type", _SECCOMP_NOTE, _SECCOMP),
    _pool("spec.securityContext.seccompProfile.localhostProfile", cri=_SECCOMP),
    _pool("spec.securityContext.appArmorProfile.type", _APP_ARMOR_NOTE, _APP_ARMOR),
    _pool("spec.securityContext.appArmorProfile.localhostProfile", cri=_APP_ARMOR),
    _pool("spec.securityContext.seLinuxOptions.user", cri=_SELINUX),
    _pool("spec.securityContext.seLinuxOptions.role", cri=_SELINUX),
    _pool("spec.securityContext.seLinuxOptions.type", cri=_SELINUX),
    _ok("spec.securityContext.seLinuxOptions.level"),
    _else(
        "spec.securityContext.seLinuxChangePolicy",
        "says how volumes get their SELinux label; without one a kubelet ignores it",
    ),
    _else("spec.securityContext.windowsOptions", _ON_WINDOWS),
    # Volumes.
    _ok("spec.volumes[].name"),
    _no("spec.volumes[].emptyDir.medium", "huge pages are not supported", "Memory"),
    _pool("spec.volumes[].emptyDir.sizeLimit"),
    _no("spec.volumes[].emptyDir.mode", "the mode of an emptyDir cannot be set"),
    _ok("spec.volumes[].configMap.defaultMode"),
    _ok("spec.volumes[].configMap.defaultUser"),
    *_key_refs("spec.volumes[].configMap"),
    _ok("spec.volumes[].secret.secretName"),
    _ok("spec.volumes[].secret.defaultMode"),
    _ok("spec.volumes[].secret.defaultUser"),
    *_key_refs("spec.volumes[].secret")[1:],
    _ok("spec.volumes[].downwardAPI.defaultMode"),
    _ok("spec.volumes[].downwardAPI.defaultUser"),
    *_downward("spec.volumes[].downwardAPI"),
    _ok("spec.volumes[].projected.defaultMode"),
    _ok("spec.volumes[].projected.defaultUser"),
    *_key_refs("spec.volumes[].projected.sources[].configMap"),
    *_key_refs("spec.volumes[].projected.sources[].secret"),
    *_downward("spec.volumes[].projected.sources[].downwardAPI"),
    _ok("spec.volumes[].projected.sources[].serviceAccountToken.audience"),
    _ok("spec.volumes[].projected.sources[].serviceAccountToken.expirationSeconds"),
    _ok("spec.volumes[].projected.sources[].serviceAccountToken.path"),
    _ok("spec.volumes[].projected.sources[].serviceAccountToken.user"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.name"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.signerName"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.labelSelector"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.optional"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.path"),
    _ok("spec.volumes[].projected.sources[].clusterTrustBundle.user"),
    _ok("spec.volumes[].projected.sources[].podCertificate.signerName"),
    _ok("spec.volumes[].projected.sources[].podCertificate.keyType"),
    _ok("spec.volumes[].projected.sources[].podCertificate.maxExpirationSeconds"),
    _ok("spec.volumes[].projected.sources[].podCertificate.credentialBundlePath"),
    _ok("spec.volumes[].projected.sources[].podCertificate.keyPath"),
    _ok("spec.volumes[].projected.sources[].podCertificate.certificateChainPath"),
    _ok("spec.volumes[].projected.sources[].podCertificate.userAnnotations"),
    _ok("spec.volumes[].projected.sources[].podCertificate.user"),
    _pool(
        "spec.volumes[].hostPath.path",
        _OPENED,
        "below paths that the pool's configuration allows",
    ),
    _pool("spec.volumes[].hostPath.type"),
    _pool("spec.volumes[].image.reference", cri="needs containerd 2.1 or CRI-O 1.31"),
    _pool("spec.volumes[].image.pullPolicy", cri="needs containerd 2.1 or CRI-O 1.31"),
    _no("spec.volumes[].persistentVolumeClaim", _NO_STORAGE),
    _no("spec.volumes[].ephemeral", _NO_STORAGE),
    _no("spec.volumes[].csi", _NO_STORAGE),
    _no("spec.volumes[].nfs", _NO_STORAGE),
    _no("spec.volumes[].iscsi", _NO_STORAGE),
    _no("spec.volumes[].fc", _NO_STORAGE),
    _no("spec.volumes[].azureFile", _NO_STORAGE),
    _no("spec.volumes[].azureDisk", _NO_STORAGE),
    _no("spec.volumes[].awsElasticBlockStore", _NO_STORAGE),
    _no("spec.volumes[].gcePersistentDisk", _NO_STORAGE),
    _no("spec.volumes[].vsphereVolume", _NO_STORAGE),
    _no("spec.volumes[].portworxVolume", _NO_STORAGE),
    _no("spec.volumes[].cinder", _NO_STORAGE),
    _no("spec.volumes[].flexVolume", _NO_STORAGE),
    _no("spec.volumes[].gitRepo", f"{_REMOVED}; clone in an init container"),
    _no("spec.volumes[].glusterfs", _REMOVED),
    _no("spec.volumes[].rbd", _REMOVED),
    _no("spec.volumes[].cephfs", _REMOVED),
    _no("spec.volumes[].flocker", _REMOVED),
    _no("spec.volumes[].quobyte", _REMOVED),
    _no("spec.volumes[].photonPersistentDisk", _REMOVED),
    _no("spec.volumes[].scaleIO", _REMOVED),
    _no("spec.volumes[].storageos", _REMOVED),
    # Containers.
    _ok(f"{_C}.name"),
    _ok(f"{_C}.image"),
    _ok(f"{_C}.imagePullPolicy"),
    _ok(f"{_C}.command", "$(VAR) is expanded"),
    _ok(f"{_C}.args", "$(VAR) is expanded"),
    _ok(f"{_C}.workingDir"),
    _ok(f"{_C}.stdin"),
    _ok(f"{_C}.stdinOnce"),
    _ok(f"{_C}.tty"),
    _ok(f"{_C}.terminationMessagePath"),
    _ok(f"{_C}.terminationMessagePolicy"),
    _pool("spec.ephemeralContainers[].targetContainerName"),
    _ok(f"{_C}.ports[].name"),
    _ok(f"{_C}.ports[].containerPort"),
    _ok(f"{_C}.ports[].protocol"),
    _pool(
        f"{_C}.ports[].hostPort",
        cri="needs CNI's portmap plugin; the pool may be started to refuse it",
    ),
    _pool(f"{_C}.ports[].hostIP"),
    _ok(f"{_C}.envFrom[].prefix"),
    _ok(f"{_C}.envFrom[].configMapRef.name"),
    _ok(f"{_C}.envFrom[].configMapRef.optional"),
    _ok(f"{_C}.envFrom[].secretRef.name"),
    _ok(f"{_C}.envFrom[].secretRef.optional"),
    _ok(f"{_C}.env[].name"),
    _ok(f"{_C}.env[].value", "$(VAR) is expanded"),
    _ok(f"{_C}.env[].valueFrom.fieldRef.apiVersion"),
    _ok(f"{_C}.env[].valueFrom.fieldRef.fieldPath"),
    _ok(f"{_C}.env[].valueFrom.resourceFieldRef.containerName"),
    _ok(f"{_C}.env[].valueFrom.resourceFieldRef.resource"),
    _ok(f"{_C}.env[].valueFrom.resourceFieldRef.divisor"),
    _ok(f"{_C}.env[].valueFrom.configMapKeyRef.name"),
    _ok(f"{_C}.env[].valueFrom.configMapKeyRef.key"),
    _ok(f"{_C}.env[].valueFrom.configMapKeyRef.optional"),
    _ok(f"{_C}.env[].valueFrom.secretKeyRef.name"),
    _ok(f"{_C}.env[].valueFrom.secretKeyRef.key"),
    _ok(f"{_C}.env[].valueFrom.secretKeyRef.optional"),
    _pool(f"{_C}.env[].valueFrom.fileKeyRef.volumeName"),
    _pool(f"{_C}.env[].valueFrom.fileKeyRef.path"),
    _pool(f"{_C}.env[].valueFrom.fileKeyRef.key"),
    _pool(f"{_C}.env[].valueFrom.fileKeyRef.optional"),
    _pool(f"{_C}.resources.limits", cri="cpu, memory and ephemeral-storage; others are refused"),
    _ok(f"{_C}.resources.requests"),
    _no(f"{_C}.resources.claims", _NO_DRA),
    _pool(f"{_C}.resizePolicy[].resourceName", "matters only for a resize"),
    _pool(f"{_C}.resizePolicy[].restartPolicy", "matters only for a resize"),
    _pool(f"{_C}.restartPolicy", "Always makes a sidecar of an init container"),
    _pool(f"{_C}.restartPolicyRules[].action"),
    _pool(f"{_C}.restartPolicyRules[].exitCodes.operator"),
    _pool(f"{_C}.restartPolicyRules[].exitCodes.values"),
    _ok(
        f"{_C}.volumeMounts[].name",
        "volumes are made with the Pod: a debug container that mounts one which no container "
        "mounted then is not started, with an event",
    ),
    _ok(f"{_C}.volumeMounts[].mountPath"),
    _ok(f"{_C}.volumeMounts[].readOnly"),
    _pool(
        f"{_C}.volumeMounts[].recursiveReadOnly",
        "IfPossible acts like Disabled: the agent cannot know what the pool can",
        "Enabled needs containerd 2.0",
    ),
    _ok(f"{_C}.volumeMounts[].subPath"),
    _ok(f"{_C}.volumeMounts[].subPathExpr", "may not use the Pod's IP"),
    _pool(
        f"{_C}.volumeMounts[].mountPropagation",
        cri="Bidirectional only for privileged containers",
    ),
    _no(f"{_C}.volumeMounts[].bindMountOptions", "further mount options are not supported"),
    _no(f"{_C}.volumeDevices", _NO_STORAGE),
    _pool(f"{_P}.exec.command"),
    _pool(f"{_P}.httpGet.path"),
    _pool(f"{_P}.httpGet.port", "a name must be one of the container's ports"),
    _pool(f"{_P}.httpGet.host"),
    _pool(f"{_P}.httpGet.scheme"),
    _pool(f"{_P}.httpGet.httpHeaders[].name"),
    _pool(f"{_P}.httpGet.httpHeaders[].value"),
    _no(f"{_P}.httpGet.protocol", "only HTTP/1.1 is supported", "HTTP1"),
    _pool(f"{_P}.tcpSocket.port", "a name must be one of the container's ports"),
    _pool(f"{_P}.tcpSocket.host"),
    _pool(f"{_P}.grpc.port"),
    _pool(f"{_P}.grpc.service"),
    _no(f"{_P}.grpc.mode", "gRPC probes are only made without TLS", "Plaintext"),
    _pool(f"{_P}.initialDelaySeconds"),
    _pool(f"{_P}.timeoutSeconds"),
    _pool(f"{_P}.periodSeconds"),
    _pool(f"{_P}.successThreshold"),
    _pool(f"{_P}.failureThreshold"),
    _pool(f"{_P}.terminationGracePeriodSeconds"),
    _pool(f"{_H}.exec.command"),
    _pool(f"{_H}.httpGet.path"),
    _pool(f"{_H}.httpGet.port", "a name must be one of the container's ports"),
    _pool(f"{_H}.httpGet.host"),
    _pool(f"{_H}.httpGet.scheme"),
    _pool(f"{_H}.httpGet.httpHeaders[].name"),
    _pool(f"{_H}.httpGet.httpHeaders[].value"),
    _no(f"{_H}.httpGet.protocol", "only HTTP/1.1 is supported", "HTTP1"),
    _no(f"{_H}.tcpSocket", "a kubelet cannot run a TCP hook either; use exec, httpGet or sleep"),
    _pool(f"{_H}.sleep.seconds"),
    _pool(f"{_C}.lifecycle.stopSignal", cri="needs containerd 2.2 or CRI-O 1.33, except SIGTERM"),
    # Security of a container.
    _ok(f"{_C}.securityContext.runAsUser"),
    _ok(f"{_C}.securityContext.runAsGroup"),
    _ok(f"{_C}.securityContext.runAsNonRoot"),
    _ok(f"{_C}.securityContext.readOnlyRootFilesystem"),
    _ok(f"{_C}.securityContext.allowPrivilegeEscalation"),
    _ok(
        f"{_C}.securityContext.capabilities.add",
        f"others than the usual ones and SYS_PTRACE are {_OPENED}",
    ),
    _ok(f"{_C}.securityContext.capabilities.drop"),
    _pool(
        f"{_C}.securityContext.privileged",
        _OPENED,
        "refused unless the pool is started to allow it",
    ),
    _pool(f"{_C}.securityContext.procMount", cri="Unmasked is refused"),
    _pool(f"{_C}.securityContext.seccompProfile.type", _SECCOMP_NOTE, _SECCOMP),
    _pool(f"{_C}.securityContext.seccompProfile.localhostProfile", cri=_SECCOMP),
    _pool(f"{_C}.securityContext.appArmorProfile.type", _APP_ARMOR_NOTE, _APP_ARMOR),
    _pool(f"{_C}.securityContext.appArmorProfile.localhostProfile", cri=_APP_ARMOR),
    _pool(f"{_C}.securityContext.seLinuxOptions.user", cri=_SELINUX),
    _pool(f"{_C}.securityContext.seLinuxOptions.role", cri=_SELINUX),
    _pool(f"{_C}.securityContext.seLinuxOptions.type", cri=_SELINUX),
    _ok(f"{_C}.securityContext.seLinuxOptions.level"),
    _else(f"{_C}.securityContext.windowsOptions", _ON_WINDOWS),
)
