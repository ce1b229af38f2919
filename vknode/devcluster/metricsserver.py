"""metrics-server as a child process, registered with the API server as in any cluster.

It has what its own manifests give it: a ServiceAccount whose token it shows to the API server and
to nodes, the rights to read Nodes, Pods and `nodes/metrics`, and those of every aggregated API
server (reviews of tokens and access, and the ConfigMap that names the front proxy's CA).

The API server finds it by an APIService, whose Service is of the type ExternalName: Endpoints may
not carry a loopback address, a name that means loopback may be used. Its certificate is for the
Service's name, since that is what the API server verifies.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vknode.devcluster.controlplane import ControlPlane
from vknode.devcluster.kubeconfig import write_kubeconfig
from vknode.devcluster.kubectl import Kubectl, KubectlFailed
from vknode.devcluster.pki import KeyPair
from vknode.devcluster.ports import pick_port
from vknode.devcluster.process import Child, ChildFailed, Crash, State, log_tail

NAME = "metrics-server"
NAMESPACE = "kube-system"
GROUP = "metrics.k8s.io"
#: Seconds between looks at every node; metrics-server takes nothing shorter.
RESOLUTION = 10
#: Seconds for one node's answer; must be less than 9/10 of the above.
NODE_TIMEOUT = 5
AVAILABLE_WITHIN = 60


class MetricsServer:
    """One metrics-server of a control plane that runs. `start` once, `kill` at the end."""

    def __init__(
        self,
        program: Path,
        plane: ControlPlane,
        kubectl: Kubectl,
        *,
        on_crash: Callable[[Crash], None] | None = None,
        on_start: Callable[[Child], None] | None = None,
    ) -> None:
        self._program = program
        self._plane = plane
        self._kubectl = kubectl
        self._on_crash = on_crash
        self._on_start = on_start
        self.child: Child | None = None

    async def start(self) -> None:
        """Starts it and waits until the API server says that its API is available.

        Raises KubectlFailed; ChildFailed, with its log's end, if it is not available in time."""
        plane = self._plane
        port = pick_port(what=NAME)
        serving = plane.authority.issue(NAME, NAME, dns=[f"{NAME}.{NAMESPACE}.svc"])
        await self._apply(port)
        token = await self._kubectl.call(
            "create", "token", NAME, "-n", NAMESPACE, "--duration=8760h"
        )
        kubeconfig = write_kubeconfig(
            plane.folder / f"{NAME}.kubeconfig",
            server=plane.url,
            ca_pem=plane.authority.pem,
            user=NAME,
            token=token.strip(),
        )
        self.child = child = Child(
            NAME,
            [self._program, *flags(port, kubeconfig, serving, plane.authority.cert)],
            log=plane.logs / f"{NAME}.log",
            on_crash=self._on_crash,
            on_start=self._on_start,
        )
        await child.start()
        try:
            await self._kubectl.call(
                "wait",
                "--for=condition=Available",
                f"apiservice/v1beta1.{GROUP}",
                f"--timeout={AVAILABLE_WITHIN}s",
                timeout=AVAILABLE_WITHIN + 10,
            )
        except KubectlFailed as problem:
            how = "has ended" if child.state is State.DEAD else "is not available"
            tail = "".join(f"\n    {line}" for line in log_tail(child.log))
            raise ChildFailed(f"{NAME} {how}: {problem}; its log ends:{tail}") from None

    async def kill(self) -> None:
        """Ends it."""
        if self.child is not None:
            await self.child.kill()

    async def _apply(self, port: int) -> None:
        documents = manifests(port, self._plane.authority.pem)
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        await self._kubectl.call("apply", "--server-side", "-f", "-", input=text.encode())


def flags(port: int, kubeconfig: Path, serving: KeyPair, kubelet_ca: Path) -> list[str]:
    """Its command line. `kubelet_ca` signed the nodes' certificates."""
    return [
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--kubelet-certificate-authority={kubelet_ca}",
        # Nodes of one agent share an address: what tells them apart is their port.
        "--kubelet-use-node-status-port",
        "--kubelet-preferred-address-types=InternalIP",
        f"--metric-resolution={RESOLUTION}s",
        f"--kubelet-request-timeout={NODE_TIMEOUT}s",
    ]


def manifests(port: int, ca_pem: bytes) -> list[dict[str, Any]]:
    """What the API server must know of it: its account and rights, and where its API is."""
    rbac = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    reads = ["get", "list", "watch"]

    def bound(
        kind: str, name: str, role_kind: str, role: str, *subjects: dict[str, str]
    ) -> dict[str, Any]:
        meta = {"name": name} | ({"namespace": NAMESPACE} if kind == "RoleBinding" else {})
        return {
            "apiVersion": f"{rbac}/v1",
            "kind": kind,
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": role_kind, "name": role},
            "subjects": list(subjects),
        }

    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"system:{NAME}"},
            "rules": [
                {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": reads},
            ],
        },
        bound("ClusterRoleBinding", f"system:{NAME}", "ClusterRole", f"system:{NAME}", account),
        bound(
            "ClusterRoleBinding",
            f"{NAME}:system:auth-delegator",
            "ClusterRole",
            "system:auth-delegator",
            account,
        ),
        bound(
            "RoleBinding",
            f"{NAME}-auth-reader",
            "Role",
            "extension-apiserver-authentication-reader",
            account,
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": "v1beta1",
                "service": {"name": NAME, "namespace": NAMESPACE, "port": port},
                "caBundle": base64.b64encode(ca_pem).decode(),
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]
